/* How much memory this process may still take. Any thread. */
#ifndef WEIR_BASE_MEMORY_H
#define WEIR_BASE_MEMORY_H

#include <stdint.h>

/* Bytes: the least of what the machine has available, what the limits of the process's cgroup and its ancestors (version 2) leave,
 * and the address space limit. What cannot be read does not limit. */
uint64_t memory_available(void);

#endif
