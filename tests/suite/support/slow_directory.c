/* A pass-through file system whose calls take as many seconds as the file DELAY says: the first number is that of reads, the second
 * that of looks at names and directories.
 *
 *     slow_directory SOURCE DELAY -f MOUNTPOINT
 *
 * Built with libfuse 3: cc slow_directory.c $(pkg-config fuse3 --cflags --libs)
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *source, *delay;

static const char *real(char *buffer, const char *path) {
    snprintf(buffer, 4096, "%s%s", source, path);
    return buffer;
}

enum { READS, LOOKS };

static void pause_as_set(int call) {
    double seconds[] = {0, 0};
    FILE *file = fopen(delay, "r");
    if (file) {
        if (fscanf(file, "%lf %lf", &seconds[READS], &seconds[LOOKS]) != 2)
            seconds[call] = 0;
        fclose(file);
    }
    if (seconds[call] > 0)
        usleep(seconds[call] * 1e6);
}

static int fs_getattr(const char *path, struct stat *stat, struct fuse_file_info *file) {
    char buffer[4096];
    (void)file;
    pause_as_set(LOOKS);
    return lstat(real(buffer, path), stat) ? -errno : 0;
}

static int fs_readdir(const char *path, void *to, fuse_fill_dir_t fill, off_t offset, struct fuse_file_info *file,
                      enum fuse_readdir_flags flags) {
    char buffer[4096];
    (void)offset, (void)file, (void)flags;
    pause_as_set(LOOKS);
    DIR *directory = opendir(real(buffer, path));
    if (!directory)
        return -errno;
    struct dirent *entry;
    while ((entry = readdir(directory)))
        fill(to, entry->d_name, 0, 0, 0);
    closedir(directory);
    return 0;
}

static int opened(int descriptor, struct fuse_file_info *file) {
    if (descriptor < 0)
        return -errno;
    file->fh = descriptor;
    return 0;
}

static int fs_create(const char *path, mode_t mode, struct fuse_file_info *file) {
    char buffer[4096];
    return opened(open(real(buffer, path), O_RDWR | O_CREAT, mode), file);
}

static int fs_open(const char *path, struct fuse_file_info *file) {
    char buffer[4096];
    pause_as_set(LOOKS);
    return opened(open(real(buffer, path), file->flags & O_ACCMODE), file);
}

static int fs_read(const char *path, char *to, size_t length, off_t offset, struct fuse_file_info *file) {
    (void)path;
    pause_as_set(READS);
    int count = pread(file->fh, to, length, offset);
    return count < 0 ? -errno : count;
}

static int fs_write(const char *path, const char *from, size_t length, off_t offset, struct fuse_file_info *file) {
    (void)path;
    int count = pwrite(file->fh, from, length, offset);
    return count < 0 ? -errno : count;
}

static int fs_release(const char *path, struct fuse_file_info *file) {
    (void)path;
    close(file->fh);
    return 0;
}

static int fs_unlink(const char *path) {
    char buffer[4096];
    return unlink(real(buffer, path)) ? -errno : 0;
}

static int fs_mkdir(const char *path, mode_t mode) {
    char buffer[4096];
    return mkdir(real(buffer, path), mode) ? -errno : 0;
}

static int fs_truncate(const char *path, off_t length, struct fuse_file_info *file) {
    char buffer[4096];
    (void)file;
    return truncate(real(buffer, path), length) ? -errno : 0;
}

static const struct fuse_operations operations = {
    .getattr = fs_getattr,
    .readdir = fs_readdir,
    .create = fs_create,
    .open = fs_open,
    .read = fs_read,
    .write = fs_write,
    .release = fs_release,
    .unlink = fs_unlink,
    .mkdir = fs_mkdir,
    .truncate = fs_truncate,
};

int main(int count, char **words) {
    source = words[1];
    delay = words[2];
    words[2] = words[0];
    return fuse_main(count - 2, words + 2, &operations, 0);
}
