/* See cpu.h. Formats: cgroups(7), Documentation/admin-guide/cgroup-v2.rst ("cpu.max"), scheduler/sched-bwc.rst. */
#include "base/cpu.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int affinity_count(void) {
    /* The kernel may know more CPUs than a fixed cpu_set_t holds; grow until the call accepts the size. */
    for (int n_cpus = 1024; n_cpus <= 1 << 18; n_cpus *= 4) {
        cpu_set_t *set = CPU_ALLOC(n_cpus);
        if (set == NULL) return 1;
        size_t size = CPU_ALLOC_SIZE(n_cpus);
        int ok = sched_getaffinity(0, size, set);
        int count = ok == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (ok == 0) return count > 0 ? count : 1;
    }
    return 1;
}

static int quota_to_cpus(long long quota, long long period, int limit) {
    if (quota <= 0 || period <= 0) return limit;
    long long cpus = (quota + period - 1) / period;
    return cpus < limit ? (int)cpus : limit;
}

static int limit_v2(const char *dir, int limit) {
    char path[4200], quota[32];
    long long period;
    snprintf(path, sizeof path, "%s/cpu.max", dir);
    FILE *f = fopen(path, "r");
    if (f == NULL) return limit;
    if (fscanf(f, "%31s %lld", quota, &period) == 2 && strcmp(quota, "max") != 0) limit = quota_to_cpus(atoll(quota), period, limit);
    fclose(f);
    return limit;
}

static long long read_number(const char *dir, const char *name) {
    char path[4200];
    long long value = -1;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "r");
    if (f == NULL) return -1;
    if (fscanf(f, "%lld", &value) != 1) value = -1;
    fclose(f);
    return value;
}

static int limit_v1(const char *dir, int limit) {
    return quota_to_cpus(read_number(dir, "cpu.cfs_quota_us"), read_number(dir, "cpu.cfs_period_us"), limit);
}

/* Applies `limit_of` to ROOT/path, and to each of its ancestors up to ROOT. */
static int limit_upwards(const char *root, const char *path, int limit, int (*limit_of)(const char *, int)) {
    char dir[4096];
    int n = snprintf(dir, sizeof dir, "%s%s", root, path);
    if (n < 0 || (size_t)n >= sizeof dir) return limit;
    for (;;) {
        limit = limit_of(dir, limit);
        char *slash = strrchr(dir, '/');
        if (slash == NULL || (size_t)(slash - dir) < strlen(root)) return limit;
        *slash = '\0';
    }
}

int cpu_count_available(void) {
    int limit = affinity_count();
    char line[4096];
    FILE *f = fopen("/proc/self/cgroup", "r");
    if (f == NULL) return limit;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL) continue;
        *path++ = '\0';
        controllers++;
        if (*controllers == '\0') limit = limit_upwards("/sys/fs/cgroup", path, limit, limit_v2);
        else if (strstr(controllers, "cpu") && !strstr(controllers, "cpuset"))
            limit = limit_upwards("/sys/fs/cgroup/cpu", path, limit, limit_v1);
    }
    fclose(f);
    return limit > 0 ? limit : 1;
}
