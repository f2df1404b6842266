/* How many CPUs this process may really use. Any thread. */
#ifndef WEIR_BASE_CPU_H
#define WEIR_BASE_CPU_H

/* CPUs of the affinity mask, limited by the CPU quota of the process's cgroup and its ancestors (version 2, else 1), rounded
 * up; at least 1. Reads /proc and /sys/fs/cgroup; what cannot be read does not limit. */
int cpu_count_available(void);

#endif
