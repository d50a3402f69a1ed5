/* file.c - see file.h. */
#include "common/base/file.h"

#include "common/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* O_NONBLOCK: opening a FIFO returns at once, to be refused by its type. */
static mr_status open_regular(int *out, struct stat *st, const char *path, mr_err *err) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return mr_fail(err, MR_ERR_IO, "open %s: %s", path, strerror(errno));
    if (fstat(fd, st) != 0) {
        close(fd);
        return mr_fail(err, MR_ERR_IO, "stat %s: %s", path, strerror(errno));
    }
    if (!S_ISREG(st->st_mode)) {
        close(fd);
        return mr_fail(err, MR_ERR_IO, "%s is not a regular file", path);
    }
    *out = fd;
    return MR_OK;
}

mr_status mr_file_read(char **out, size_t *bytes, const char *path, size_t bytes_max, mr_err *err) {
    int fd = -1;
    struct stat st;
    *out = NULL;
    *bytes = 0;
    const mr_status status = open_regular(&fd, &st, path, err);
    if (status != MR_OK) return status;
    if ((uint64_t)st.st_size > bytes_max) {
        close(fd);
        return mr_fail(err, MR_ERR_LIMIT, "%s has %lld bytes, more than the %zu allowed", path,
                       (long long)st.st_size, bytes_max);
    }
    const size_t size = (size_t)st.st_size;
    char *data = mr_alloc(size + 1);
    size_t have = 0;
    while (have < size) {
        const ssize_t got = read(fd, data + have, size - have);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            free(data);
            close(fd);
            return mr_fail(err, MR_ERR_IO, "read %s: %s", path,
                           got < 0 ? strerror(errno) : "it became shorter while being read");
        }
        have += (size_t)got;
    }
    close(fd);
    *out = data;
    *bytes = size;
    return MR_OK;
}

mr_status mr_file_map_open(mr_file_map *out, const char *path, mr_err *err) {
    int fd = -1;
    struct stat st;
    *out = (mr_file_map){0};
    const mr_status status = open_regular(&fd, &st, path, err);
    if (status != MR_OK) return status;
    out->bytes = (uint64_t)st.st_size;
    out->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    if (out->bytes > 0) {
        void *map = mmap(NULL, (size_t)out->bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) {
            const int code = errno;
            close(fd);
            *out = (mr_file_map){0};
            return mr_fail(err, MR_ERR_IO, "map %s: %s", path, strerror(code));
        }
        out->data = map;
    }
    close(fd); /* the mapping keeps the file alive */
    return MR_OK;
}

void mr_file_map_close(mr_file_map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, (size_t)map->bytes);
    *map = (mr_file_map){0};
}

static mr_status write_all(int fd, const char *data, size_t bytes) {
    while (bytes > 0) {
        const ssize_t put = write(fd, data, bytes);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return MR_ERR_IO;
        data += put;
        bytes -= (size_t)put;
    }
    return MR_OK;
}

mr_status mr_file_write(const char *path, const void *data, size_t bytes, mr_err *err) {
    mr_status status = MR_OK;
    char *temporary = mr_format("%s.tmp-%ld", path, (long)getpid());
    const int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        status = mr_fail(err, MR_ERR_IO, "create %s: %s", temporary, strerror(errno));
        goto free_name;
    }
    if (write_all(fd, data, bytes) != MR_OK || fsync(fd) != 0)
        status = mr_fail(err, MR_ERR_IO, "write %s: %s", temporary, strerror(errno));
    if (close(fd) != 0 && status == MR_OK)
        status = mr_fail(err, MR_ERR_IO, "write %s: %s", temporary, strerror(errno));
    if (status == MR_OK && rename(temporary, path) != 0)
        status = mr_fail(err, MR_ERR_IO, "rename %s: %s", path, strerror(errno));
    if (status != MR_OK) unlink(temporary);
free_name:
    free(temporary);
    return status;
}

mr_status mr_make_directories(const char *path, mr_err *err) {
    mr_status status = MR_OK;
    char *copy = mr_strdup(path);
    for (char *at = copy + 1;; at++) {
        const char here = *at;
        if (here != '/' && here != '\0') continue;
        *at = '\0';
        if (mkdir(copy, 0755) != 0 && errno != EEXIST) {
            status = mr_fail(err, MR_ERR_IO, "create folder %s: %s", copy, strerror(errno));
            break;
        }
        *at = here;
        if (here == '\0') break;
    }
    free(copy);
    return status;
}
