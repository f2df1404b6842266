/* See memory.h. Formats: proc(5) "/proc/meminfo", Documentation/admin-guide/cgroup-v2.rst ("memory.max", "memory.current"). */
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static uint64_t machine_available(void) {
    char line[256];
    unsigned long long kib;
    uint64_t result = UINT64_MAX;
    FILE *f = fopen("/proc/meminfo", "r");
    if (f == NULL) return result;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) result = kib * 1024;
    fclose(f);
    return result;
}

static uint64_t read_bytes(const char *dir, const char *name) {
    char path[4200];
    unsigned long long value;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "r");
    if (f == NULL) return UINT64_MAX;
    uint64_t result = fscanf(f, "%llu", &value) == 1 ? value : UINT64_MAX; /* "max" does not parse: no limit */
    fclose(f);
    return result;
}

static uint64_t cgroup_available(void) {
    char line[4096], dir[4200];
    uint64_t least = UINT64_MAX;
    FILE *f = fopen("/proc/self/cgroup", "r");
    if (f == NULL) return least;
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, "0::", 3) != 0) continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(dir, sizeof dir, "/sys/fs/cgroup%s", line + 3);
        for (char *slash; (slash = strrchr(dir, '/')) && slash - dir >= (long)strlen("/sys/fs/cgroup"); *slash = '\0') {
            uint64_t max = read_bytes(dir, "memory.max"), used = read_bytes(dir, "memory.current");
            if (max != UINT64_MAX && used != UINT64_MAX) {
                uint64_t left = max > used ? max - used : 0;
                if (left < least) least = left;
            }
        }
    }
    fclose(f);
    return least;
}

static uint64_t address_space_available(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return UINT64_MAX;
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f) {
        if (fscanf(f, "%llu", &pages) != 1) pages = 0;
        fclose(f);
    }
    return limit.rlim_cur > pages * 4096 ? limit.rlim_cur - pages * 4096 : 0;
}

uint64_t memory_available(void) {
    uint64_t least = machine_available(), other = cgroup_available();
    if (other < least) least = other;
    other = address_space_available();
    return other < least ? other : least;
}
