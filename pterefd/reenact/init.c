/*
 * The first process of a guest. It starts the agent, passes lines between the guest's second serial port and the
 * agents' slots, and does what only something inside can do: it reads /proc and waits for what exits.
 *
 * On the port, both ways, raw: `TO LENGTH` in hexadecimal, a newline, LENGTH bytes. TO is a slot, whose agent the bytes
 * are for or from (none: the slot was closed), or ff, this process. It answers each command with one message:
 * a result in decimal (negative: an errno), a newline and, of `r`, a file's bytes. Commands, numbers in hexadecimal:
 *
 *   p NAME                 the bytes after a newline go to the end of the program NAME
 *   a SLOTS FLAG NAME      start the program NAME, an agent, with FLAG as first argument and so many slots; result: its pid
 *   w PID                  wait until that process is gone
 *   k                      kill all agents
 *   r PATH                 read a file
 */

#include "calls.h"

enum {
	SLOTS = 64, OURSELF = 0xff, WIRE = 9, LIFTED = 200, WAIT_MS = 60000, POLLIN = 1, POLLHUP = 16, SIGKILL = 9,
	WNOHANG = 1, ESRCH = 3, EINVAL = 22, ETIMEDOUT = 110, TCSETS = 0x5402,
};

struct pollfd {
	int fd;
	u16 events, revents;
};

static char wire_buf[4096], message[4096], slot_buf[16384], file_buf[1 << 20];
static int wire_len, wire_pos;
static int slots[SLOTS];

__asm__(".globl _start\n"
	"_start: andq $-16, %rsp\n"
	"	call start\n");

static void write_all(int fd, const char *from, long left)
{
	while (left > 0) {
		long n = call(SYS_write, fd, from, left);

		if (n <= 0)
			return;
		from += n;
		left -= n;
	}
}

static int digits(char *to, u64 value, u32 base)
{
	char reversed[24];
	int n = 0, length = 0;

	do {
		reversed[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	while (n)
		to[length++] = reversed[--n];
	return length;
}

static void send_head(u32 to, u64 length)
{
	char head[40];
	int n = digits(head, to, 16);

	head[n++] = ' ';
	n += digits(head + n, length, 16);
	head[n++] = '\n';
	write_all(WIRE, head, n);
}

static void answer_with(long result, const char *bytes, u64 length)
{
	char text[40];
	int n = 0;

	if (result < 0)
		text[n++] = '-';
	n += digits(text + n, result < 0 ? -result : result, 10);
	text[n++] = '\n';
	send_head(OURSELF, n + length);
	write_all(WIRE, text, n);
	write_all(WIRE, bytes, length);
}

static int next_char(void)
{
	if (wire_pos == wire_len) {
		long n = call(SYS_read, WIRE, wire_buf, sizeof wire_buf);

		wire_len = n > 0 ? n : 0;
		wire_pos = 0;
		if (n <= 0)
			return '\n';
	}
	return wire_buf[wire_pos++];
}

static u64 next_number(void)
{
	u64 value = 0;

	for (int c = next_char(); c != ' ' && c != '\n'; c = next_char())
		value = value * 16 + (c <= '9' ? c - '0' : c - 'a' + 10);
	return value;
}

/* The word at *p, ended by a null, and *p behind it. */
static char *word_at(char **p)
{
	char *word = *p;

	while (**p && **p != ' ' && **p != '\n')
		++*p;
	if (**p)
		*(*p)++ = 0;
	return word;
}

static u64 number_at(char **p)
{
	u64 value = 0;

	for (const char *c = word_at(p); *c; c++)
		value = value * 16 + (*c <= '9' ? *c - '0' : *c - 'a' + 10);
	return value;
}

/* ---- commands ---------------------------------------------------------------------------------- */

/* Written as it comes, less than a page at a time: so its page cache is made of folios of one page. */
static long append_to(const char *name, const char *bytes, u64 length)
{
	long fd = call(SYS_open, name, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0700);

	if (fd < 0)
		return fd;
	write_all(fd, bytes, length);
	call(SYS_close, fd, 0, 0);
	return 0;
}

static long start_agent(u64 count, char *flag, char *name)
{
	char *argv[] = { name, flag, 0 }, *envp[] = { 0 };
	long pid;

	if (count > SLOTS)
		return -EINVAL;
	for (u64 i = 0; i < count; i++) {
		int pair[2];
		long err = call6(SYS_socketpair, 1, 1 | O_CLOEXEC, 0, (u64)pair, 0, 0); /* AF_UNIX, SOCK_STREAM */

		if (err)
			return err;
		slots[i] = pair[0];
		call(SYS_dup3, pair[1], LIFTED + i, O_CLOEXEC);
		call(SYS_close, pair[1], 0, 0);
	}
	pid = call(SYS_fork, 0, 0, 0);
	if (pid == 0) {
		for (u64 i = 0; i < count; i++)
			call(SYS_dup3, LIFTED + i, FD0 + i, 0);
		call(SYS_execve, name, argv, envp);
		call(SYS_exit, 127, 0, 0);
	}
	for (u64 i = 0; i < count; i++)
		call(SYS_close, LIFTED + i, 0, 0);
	return pid;
}

static void reap(void)
{
	while (call6(SYS_wait4, -1UL, 0, WNOHANG, 0, 0, 0) > 0)
		;
}

static long wait_for(u64 pid)
{
	struct pollfd poll;
	long n, fd = call(SYS_pidfd_open, pid, 0, 0);

	if (fd < 0)
		return fd == -ESRCH ? 0 : fd; /* it is gone and reaped */
	poll.fd = fd;
	poll.events = POLLIN;
	n = call(SYS_poll, &poll, 1, WAIT_MS);
	call(SYS_close, fd, 0, 0);
	reap();
	return n == 1 ? 0 : -ETIMEDOUT;
}

static void end_all(void)
{
	call(SYS_kill, -1, SIGKILL, 0);
	while (call6(SYS_wait4, -1UL, 0, 0, 0, 0, 0) > 0)
		;
	for (int i = 0; i < SLOTS; i++) {
		if (slots[i] >= 0)
			call(SYS_close, slots[i], 0, 0);
		slots[i] = -1;
	}
}

static void read_file(const char *path)
{
	u64 length = 0;
	long n, fd = call(SYS_open, path, O_CLOEXEC, 0);

	if (fd < 0) {
		answer_with(fd, 0, 0);
		return;
	}
	do {
		n = call(SYS_read, fd, file_buf + length, sizeof file_buf - length);
		length += n > 0 ? n : 0;
	} while (n > 0 && length < sizeof file_buf);
	call(SYS_close, fd, 0, 0);
	answer_with(n, file_buf, length);
}

static void command(char *text, u64 length)
{
	char *rest = text + 2, *name, *flag;
	u64 number;

	switch (text[0]) {
	case 'p':
		name = word_at(&rest);
		answer_with(append_to(name, rest, length - (rest - text)), 0, 0);
		return;
	case 'a':
		number = number_at(&rest);
		flag = word_at(&rest);
		answer_with(start_agent(number, flag, rest), 0, 0);
		return;
	case 'w':
		answer_with(wait_for(number_at(&rest)), 0, 0);
		return;
	case 'k':
		end_all();
		answer_with(0, 0, 0);
		return;
	case 'r':
		read_file(rest);
		return;
	}
	answer_with(-EINVAL, 0, 0);
}

/* ---- between the port and the slots ------------------------------------------------------------ */

static void from_wire(void)
{
	u64 to = next_number(), length = next_number();

	for (u64 i = 0; i < length; i++) {
		char c = next_char();

		if (i < sizeof message - 1)
			message[i] = c;
	}
	length = length < sizeof message - 1 ? length : sizeof message - 1;
	message[length] = 0;
	if (to == OURSELF)
		command(message, length);
	else if (to < SLOTS && slots[to] >= 0)
		write_all(slots[to], message, length);
}

static void from_slot(int slot)
{
	long n = call(SYS_read, slots[slot], slot_buf, sizeof slot_buf);

	if (n <= 0) {
		call(SYS_close, slots[slot], 0, 0);
		slots[slot] = -1;
		n = 0;
	}
	send_head(slot, n);
	write_all(WIRE, slot_buf, n);
}

static void open_wire(void)
{
	static const char path[] = "/dev/ttyS1";
	struct { u32 iflag, oflag, cflag, lflag; u8 line, cc[19]; } raw;
	long fd = call(SYS_open, path, O_RDWR | O_NOCTTY | O_CLOEXEC, 0);

	if (fd < 0)
		call(SYS_exit, 1, 0, 0);   /* the kernel panics, and says so on its console */
	raw.iflag = raw.oflag = raw.lflag = raw.line = 0;
	raw.cflag = 010002 | 060 | 0200 | 04000; /* B115200, CS8, CREAD, CLOCAL */
	for (int i = 0; i < 19; i++)
		raw.cc[i] = i == 6;        /* VMIN 1 */
	call(SYS_ioctl, fd, TCSETS, &raw);
	call(SYS_dup3, fd, WIRE, O_CLOEXEC);
	call(SYS_close, fd, 0, 0);
}

/* Any size may be mapped, as on a machine with more memory: mm/util.c __vm_enough_memory, OVERCOMMIT_ALWAYS. */
static void overcommit(void)
{
	static const char path[] = "/proc/sys/vm/overcommit_memory";
	long fd = call(SYS_open, path, O_RDWR, 0);

	call(SYS_write, fd, "1", 1);
	call(SYS_close, fd, 0, 0);
}

static void mount(const char *kind, const char *where)
{
	call6(SYS_mount, (u64)kind, (u64)where, (u64)kind, 0, 0, 0);
}

__attribute__((used)) void start(void)
{
	struct pollfd polls[SLOTS + 1];

	for (int i = 0; i < SLOTS; i++)
		slots[i] = -1;
	mount("proc", "/proc");
	overcommit();
	open_wire();
	answer_with(0, 0, 0);
	for (;;) {
		while (wire_pos < wire_len)
			from_wire();
		for (int i = 0; i <= SLOTS; i++) {
			polls[i].fd = i < SLOTS ? slots[i] : WIRE;
			polls[i].events = POLLIN;
			polls[i].revents = 0;
		}
		call(SYS_poll, polls, SLOTS + 1, -1);
		for (int i = 0; i < SLOTS; i++) {
			if (polls[i].revents & (POLLIN | POLLHUP))
				from_slot(i);
		}
		if (polls[SLOTS].revents & POLLIN)
			from_wire();
	}
}
