/* A program that notices whatever is done to it: memory with known content in many threads, and calls that sleep, each
 * held to what it must return. Ends with 0 and a line of counts after so many seconds; with 1 and a line at once where
 * something is not as it must be.
 *
 *     torture SECONDS [single | memory | epoll_timed | sigtimedwait | semtimedop | recv_timed | recv_all | write]...
 *
 * The words leave all but memory away, or add threads with calls that a stop would lengthen or cut short. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define REGION (96UL << 20)
#define PAGES (REGION / PAGE)

static volatile int over;
static volatile long counts[64];
static __thread int me;

static void wrong(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	flockfile(stdout);
	printf("wrong: ");
	vprintf(format, list);
	printf(" (errno %d)\n", errno);
	fflush(stdout);
	va_end(list);
	_exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void pause_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &t))
		;
}

/* ---- memory ---- */

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	return x;
}

static void fill(uint64_t *page, uint64_t seed)
{
	for (int i = 0; i < PAGE / 8; i += 8)
		page[i] = mix(seed + i);
}

static int holds(const uint64_t *page, uint64_t seed)
{
	for (int i = 0; i < PAGE / 8; i += 8)
		if (page[i] != (seed ? mix(seed + i) : 0))
			return 0;
	return 1;
}

struct region {
	char *memory;
	uint64_t *seeds;
	uint64_t random;
};

static uint64_t draw(struct region *r)
{
	r->random = r->random * 6364136223846793005ULL + 1442695040888963407ULL;
	return r->random >> 20;
}

static struct region regions[3];

static void *memory_worker(void *argument)
{
	struct region *r = argument;

	while (!over) {
		uint64_t at = draw(r) % PAGES, n = draw(r) % 700;

		if (at + n > PAGES)
			n = PAGES - at;
		switch (draw(r) % 8) {
		case 0:
		case 1:
			for (uint64_t i = at; i < at + n / 64; i++) {
				r->seeds[i] = draw(r) | 1;
				fill((uint64_t *)(r->memory + i * PAGE), r->seeds[i]);
			}
			break;
		case 2:
		case 3:
			n = at + 6 * n > PAGES ? PAGES - at : 6 * n;
			madvise(r->memory + at * PAGE, n * PAGE, MADV_DONTNEED);
			memset(r->seeds + at, 0, n * 8);
			break;
		case 4: { /* only read: the zero page */
			uint64_t sum = 0;

			for (uint64_t i = at; i < at + n; i++)
				if (!r->seeds[i])
					sum += *(volatile uint64_t *)(r->memory + i * PAGE);
			if (sum)
				wrong("pages that were never written hold something");
			break;
		}
		case 5: { /* something that comes and goes */
			char *other = mmap(NULL, 8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			char *block = malloc(300000);

			memset(block, 5, 300000);
			other[5 << 20] = 1;
			if (block[299999] != 5 || other[5 << 20] != 1)
				wrong("new memory");
			free(block);
			munmap(other, 8 << 20);
			break;
		}
		default:
			for (uint64_t i = at; i < at + n / 4; i++)
				if (!holds((uint64_t *)(r->memory + i * PAGE), r->seeds[i]))
					wrong("page %lu of region %ld is not what was written", i, r - regions);
		}
		counts[me]++;
	}
	return NULL;
}

static void *computer(void *unused)
{
	double a = 1, b = 2;
	long double c = 3;

	while (!over) {
		double x = 0;
		long double y = 0;

		for (int i = 1; i < 20000; i++) {
			x += a / i * b;
			y += c / i;
		}
		if (x != 20.956812208461802 && counts[me] == 0)
			b = 2; /* the first sum is the reference */
		static __thread double first;
		static __thread long double second;
		if (!counts[me]) {
			first = x;
			second = y;
		}
		if (x != first || y != second)
			wrong("floating point registers");
		counts[me]++;
	}
	return unused;
}

static void *forker(void *unused)
{
	while (!over) {
		pid_t child = fork();
		int status;

		if (child < 0)
			wrong("fork");
		if (child == 0) {
			for (uint64_t i = 0; i < PAGES; i += 97)
				if (!holds((uint64_t *)(regions[2].memory + i * PAGE), regions[2].seeds[i]))
					_exit(9);
			_exit(7);
		}
		if (waitpid(child, &status, 0) != child)
			wrong("waitpid");
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 7)
			wrong("the child's copy: status %x", status);
		counts[me]++;
		pause_ms(20);
	}
	return unused;
}

/* ---- calls that sleep ---- */

static int event, empty_epoll, full_epoll, pipe_fds[2], big_pipe[2], data_pair[2], silent_pair[2], listener, notify;
static int sems, queue;
static struct sockaddr_un address = { AF_UNIX };
static socklen_t address_size;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int turn;
static pthread_t waits_for_usr1, gets_usr2, suspends;
static volatile int in_usr1, in_usr2, in_suspend;
static volatile sig_atomic_t usr2_seen, rt_seen;

static void on_usr2(int sig) { usr2_seen++; }
static void on_rt(int sig) { rt_seen++; }
static void on_alarm(int sig) { counts[63]++; }

static void must(int holds_, const char *what, long got)
{
	if (over)
		pthread_exit(NULL); /* what it waited for is being taken away */
	if (!holds_)
		wrong("%s returned %ld", what, got);
	counts[me]++;
}

static void lasted(double began, double least, const char *what)
{
	double took = now() - began;

	if (took < least - 0.002 || took > least + 2)
		wrong("%s took %.1f ms for %.1f", what, took * 1000, least * 1000);
}

static void *epoll_endless(void *unused)
{
	struct epoll_event e;
	uint64_t value;

	while (!over) {
		long r = epoll_wait(full_epoll, &e, 1, -1);

		must(r == 1, "epoll_wait", r);
		read(event, &value, 8);
	}
	return unused;
}

static void *epoll_timed(void *unused)
{
	struct epoll_event e;

	while (!over) {
		double began = now();
		long r = epoll_wait(empty_epoll, &e, 1, 25);

		must(r == 0, "epoll_wait with a timeout", r);
		lasted(began, 0.025, "epoll_wait");
	}
	return unused;
}

static void *epoll_interrupted(void *unused)
{
	struct epoll_event e;
	int own = epoll_create1(0);

	while (!over) {
		long before = usr2_seen;

		in_usr2 = 1;
		long r = epoll_wait(own, &e, 1, -1);
		must(r == -1 && errno == EINTR && usr2_seen > before, "epoll_wait with a handler", r);
	}
	return unused;
}

static void *sigwaits(void *unused)
{
	sigset_t set;
	siginfo_t info;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	while (!over) {
		in_usr1 = 1;
		long r = sigwaitinfo(&set, &info);
		must(r == SIGUSR1, "sigwaitinfo", r);
	}
	return unused;
}

static void *sigwaits_timed(void *unused)
{
	sigset_t set;
	struct timespec t = { 0, 30000000 };

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 9);
	while (!over) {
		double began = now();
		long r = sigtimedwait(&set, NULL, &t);

		must(r == -1 && errno == EAGAIN, "sigtimedwait", r);
		lasted(began, 0.03, "sigtimedwait");
	}
	return unused;
}

static void *sigsuspends(void *unused)
{
	sigset_t none;

	sigfillset(&none);
	sigdelset(&none, SIGRTMIN + 3);
	while (!over) {
		long before = rt_seen;

		in_suspend = 1;
		long r = sigsuspend(&none);
		must(r == -1 && errno == EINTR && rt_seen > before, "sigsuspend", r);
	}
	return unused;
}

static void *sem_waits(void *unused)
{
	struct sembuf down = { 0, -1, 0 };

	while (!over) {
		long r = semop(sems, &down, 1);

		must(r == 0, "semop", r);
	}
	return unused;
}

static void *sem_timed(void *unused)
{
	struct sembuf down = { 1, -1, 0 };
	struct timespec t = { 0, 35000000 };

	while (!over) {
		double began = now();
		long r = semtimedop(sems, &down, 1, &t);

		must(r == -1 && errno == EAGAIN, "semtimedop", r);
		lasted(began, 0.035, "semtimedop");
	}
	return unused;
}

static void *receives_timed(void *unused)
{
	char byte;

	while (!over) {
		double began = now();
		long r = recv(silent_pair[0], &byte, 1, 0);

		must(r == -1 && errno == EAGAIN, "recv with SO_RCVTIMEO", r);
		lasted(began, 0.04, "recv");
	}
	return unused;
}

static void *receives(void *unused)
{
	char bytes[8];

	while (!over) {
		long r = recv(data_pair[0], bytes, 8, MSG_WAITALL);

		must(r == 8, "recv with MSG_WAITALL", r);
	}
	return unused;
}

static void *reads_pipe(void *unused)
{
	char byte;

	while (!over) {
		long r = read(pipe_fds[0], &byte, 1);

		must(r == 1, "read of a pipe", r);
	}
	return unused;
}

static void *writes_big(void *unused)
{
	static char block[1 << 20];

	while (!over) {
		long r = write(big_pipe[1], block, sizeof block);

		must(r == sizeof block, "write of 1 MiB to a pipe", r);
	}
	return unused;
}

static void *reads_big(void *unused)
{
	static char block[40000];

	while (!over) {
		long r = read(big_pipe[0], block, sizeof block);

		must(r > 0, "read of a large pipe", r);
		if (counts[me] % 8 == 0)
			pause_ms(1);
	}
	return unused;
}

static void *sleeps(void *unused)
{
	struct timespec t = { 0, 7000000 };

	while (!over) {
		double began = now();
		long r = nanosleep(&t, NULL);

		must(r == 0, "nanosleep", r);
		lasted(began, 0.007, "nanosleep");
	}
	return unused;
}

static void *polls(void *unused)
{
	struct pollfd p = { silent_pair[1], POLLIN, 0 };
	struct timespec t = { 0, 12000000 };

	while (!over) {
		double began = now();
		long r = poll(&p, 1, 20);

		must(r == 0, "poll", r);
		lasted(began, 0.02, "poll");
		began = now();
		r = ppoll(&p, 1, &t, NULL);
		must(r == 0, "ppoll", r);
		lasted(began, 0.012, "ppoll");
	}
	return unused;
}

static void *selects(void *unused)
{
	sigset_t mask;

	sigfillset(&mask);
	while (!over) {
		struct timeval t = { 0, 15000 };
		struct timespec s = { 0, 15000000 };
		fd_set set;
		double began = now();

		FD_ZERO(&set);
		FD_SET(silent_pair[1], &set);
		long r = select(silent_pair[1] + 1, &set, NULL, NULL, &t);
		must(r == 0, "select", r);
		lasted(began, 0.015, "select");
		FD_SET(silent_pair[1], &set);
		began = now();
		r = pselect(silent_pair[1] + 1, &set, NULL, NULL, &s, &mask);
		must(r == 0, "pselect", r);
		lasted(began, 0.015, "pselect");
	}
	return unused;
}

static void *conditions(void *unused)
{
	while (!over) {
		struct timespec t;

		clock_gettime(CLOCK_REALTIME, &t);
		t.tv_nsec += 30000000;
		if (t.tv_nsec >= 1000000000) {
			t.tv_nsec -= 1000000000;
			t.tv_sec++;
		}
		pthread_mutex_lock(&lock);
		long before = turn, r = 0;
		while (turn == before && r == 0)
			r = pthread_cond_timedwait(&condition, &lock, &t);
		pthread_mutex_unlock(&lock);
		must(r == 0 || r == ETIMEDOUT, "pthread_cond_timedwait", r);
	}
	return unused;
}

static void *accepts(void *unused)
{
	while (!over) {
		long r = accept(listener, NULL, NULL);

		must(r >= 0, "accept", r);
		close(r);
	}
	return unused;
}

static void *messages(void *unused)
{
	struct { long type; char text[8]; } m;

	while (!over) {
		long r = msgrcv(queue, &m, 8, 0, 0);

		must(r == 8, "msgrcv", r);
	}
	return unused;
}

static void *notified(void *unused)
{
	char buffer[4096];

	while (!over) {
		long r = read(notify, buffer, sizeof buffer);

		must(r > 0, "read of an inotify descriptor", r);
	}
	return unused;
}

static void *ticks(void *unused)
{
	uint64_t one = 1;
	struct { long type; char text[8]; } m = { 1, "message" };
	struct sembuf up = { 0, 1, 0 };

	while (!over) {
		write(event, &one, 8);
		write(pipe_fds[1], "x", 1);
		send(data_pair[1], "1234", 4, MSG_DONTWAIT);
		semop(sems, &up, 1);
		msgsnd(queue, &m, 8, IPC_NOWAIT);
		pthread_mutex_lock(&lock);
		turn++;
		pthread_cond_broadcast(&condition);
		pthread_mutex_unlock(&lock);
		int s = socket(AF_UNIX, SOCK_STREAM, 0);
		if (connect(s, (struct sockaddr *)&address, address_size))
			wrong("connect");
		close(s);
		close(open("/tmp", O_RDONLY));
		pause_ms(3);
		send(data_pair[1], "5678", 4, MSG_DONTWAIT);
		if (in_usr1) {
			in_usr1 = 0;
			pthread_kill(waits_for_usr1, SIGUSR1);
		}
		if (in_usr2) {
			in_usr2 = 0;
			pause_ms(2);
			pthread_kill(gets_usr2, SIGUSR2);
		}
		if (in_suspend) {
			in_suspend = 0;
			pthread_kill(suspends, SIGRTMIN + 3);
		}
		counts[me]++;
	}
	return unused;
}

/* Signals that nobody has a handler for: the kernel drops them where the leader is not traced. Nor blocks them, as it
 * does while it begins a thread. */
static void *ignored(void *unused)
{
	pause_ms(50);
	while (!over) {
		kill(getpid(), SIGWINCH);
		counts[me]++;
		usleep(200);
	}
	return unused;
}

struct start {
	void *(*run)(void *);
	void *argument;
	int number;
};

static void *begin(void *argument)
{
	struct start s = *(struct start *)argument;

	free(argument);
	me = s.number;
	return s.run(s.argument);
}

static int started;

static pthread_t start(void *(*run)(void *), void *argument)
{
	struct start *s = malloc(sizeof *s);
	pthread_t thread;

	*s = (struct start){ run, argument, started++ };
	if (pthread_create(&thread, NULL, begin, s))
		wrong("pthread_create");
	return thread;
}

static int has(char **words, const char *word)
{
	for (; *words; words++)
		if (!strcmp(*words, word))
			return 1;
	return 0;
}

int main(int count, char **words)
{
	double seconds = count > 1 ? atof(words[1]) : 5;
	int single = count > 2 && !strcmp(words[2], "single"); /* memory alone, and one other thread at most */
	struct timeval timeout = { 0, 40000 };
	struct itimerval often = { { 0, 2000 }, { 0, 2000 } };
	struct epoll_event interest = { EPOLLIN };
	struct sigaction handler = { 0 };
	sigset_t set;

	for (int i = 0; i < 3; i++) {
		regions[i].memory = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		regions[i].seeds = calloc(PAGES, 8);
		regions[i].random = 12345 + i;
	}
	for (uint64_t i = 0; i < PAGES; i += 11) {
		regions[2].seeds[i] = i + 1;
		fill((uint64_t *)(regions[2].memory + i * PAGE), i + 1);
		if (i % 5 == 0) {
			regions[2].seeds[i] = 0;
			madvise(regions[2].memory + i * PAGE, PAGE, MADV_DONTNEED);
		}
	}
	handler.sa_handler = on_alarm;
	handler.sa_flags = SA_RESTART;
	sigaction(SIGALRM, &handler, NULL);
	if (single) {
		double end = now() + seconds;

		setitimer(ITIMER_REAL, &often, NULL);
		printf("ready\n");
		fflush(stdout);
		for (int i = 0; now() < end; i++) {
			pthread_t alone = start(memory_worker, &regions[0]);
			pause_ms(50);
			over = 1;
			pthread_join(alone, NULL);
			over = 0;
			started = 0;
		}
		printf("fine\n");
		return 0;
	}
	/* SIGALRM is for the threads with memory alone: it has a handler, and would end other threads' calls */
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 9);
	sigaddset(&set, SIGRTMIN + 3);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	handler.sa_handler = on_usr2;
	sigaction(SIGUSR2, &handler, NULL);
	handler.sa_handler = on_rt;
	sigaction(SIGRTMIN + 3, &handler, NULL);
	event = eventfd(0, 0);
	empty_epoll = epoll_create1(0);
	full_epoll = epoll_create1(0);
	epoll_ctl(full_epoll, EPOLL_CTL_ADD, event, &interest);
	if (pipe(pipe_fds) || pipe(big_pipe) || socketpair(AF_UNIX, SOCK_STREAM, 0, data_pair) ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, silent_pair))
		wrong("pipes");
	setsockopt(silent_pair[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
	sems = semget(IPC_PRIVATE, 2, 0600);
	queue = msgget(IPC_PRIVATE, 0600);
	listener = socket(AF_UNIX, SOCK_STREAM, 0); /* with an abstract name (unix(7), Autobind): nothing that a kill leaves */
	if (bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t)) || listen(listener, 64))
		wrong("listen");
	address_size = sizeof address;
	getsockname(listener, (struct sockaddr *)&address, &address_size);
	notify = inotify_init1(0);
	inotify_add_watch(notify, "/tmp", IN_OPEN);

	if (has(words, "memory"))
		goto memory;
	start(epoll_endless, NULL);
	if (has(words, "epoll_timed"))
		start(epoll_timed, NULL);
	gets_usr2 = start(epoll_interrupted, NULL);
	waits_for_usr1 = start(sigwaits, NULL);
	if (has(words, "sigtimedwait"))
		start(sigwaits_timed, NULL);
	suspends = start(sigsuspends, NULL);
	start(sem_waits, NULL);
	if (has(words, "semtimedop"))
		start(sem_timed, NULL);
	if (has(words, "recv_timed"))
		start(receives_timed, NULL);
	if (has(words, "recv_all"))
		start(receives, NULL);
	start(reads_pipe, NULL);
	if (has(words, "write"))
		start(writes_big, NULL);
	if (has(words, "write"))
		start(reads_big, NULL);
	start(sleeps, NULL);
	start(polls, NULL);
	start(selects, NULL);
	start(conditions, NULL);
	start(accepts, NULL);
	start(messages, NULL);
	start(notified, NULL);
	start(ticks, NULL);
memory:
	start(forker, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	start(memory_worker, &regions[0]);
	start(memory_worker, &regions[1]);
	start(computer, NULL);
	if (!has(words, "memory"))
		start(ignored, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	printf("ready\n");
	fflush(stdout);
	double end = now() + seconds;
	while (now() < end)
		pause_ms(20);
	over = 1;
	semctl(sems, 0, IPC_RMID);
	msgctl(queue, IPC_RMID, NULL);
	printf("fine");
	for (int i = 0; i < started; i++)
		printf(" %ld", counts[i]);
	printf(" alarms %ld\n", counts[63]);
	fflush(stdout);
	_exit(0);
}
