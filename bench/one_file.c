/* A file system of one file, as small as libfuse 3 allows: what the mount's latency is compared with. */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fuse.h>
#include <string.h>
#include <sys/stat.h>

static const char text[] = "60\n";

static void *init(struct fuse_conn_info *conn, struct fuse_config *config)
{
	(void)conn;
	config->direct_io = 1;
	config->entry_timeout = config->attr_timeout = 0.1; /* as pterefd's mount */
	return NULL;
}

static int getattr(const char *path, struct stat *st, struct fuse_file_info *file)
{
	(void)file;
	memset(st, 0, sizeof(*st));
	st->st_mode = S_IFREG | 0444;
	st->st_nlink = 1;
	if (strcmp(path, "/") == 0)
		st->st_mode = S_IFDIR | 0555;
	else if (strcmp(path, "/file") != 0)
		return -ENOENT;
	return 0;
}

static int open_file(const char *path, struct fuse_file_info *file)
{
	(void)file;
	return strcmp(path, "/file") == 0 ? 0 : -ENOENT;
}

static int read_file(const char *path, char *buffer, size_t size, off_t offset, struct fuse_file_info *file)
{
	size_t length = sizeof(text) - 1;

	(void)path;
	(void)file;
	if ((size_t)offset >= length)
		return 0;
	if (size > length - (size_t)offset)
		size = length - (size_t)offset;
	memcpy(buffer, text + offset, size);
	return (int)size;
}

static const struct fuse_operations operations = {
	.init = init,
	.getattr = getattr,
	.open = open_file,
	.read = read_file,
};

int main(int argc, char **argv)
{
	return fuse_main(argc, argv, &operations, NULL);
}
