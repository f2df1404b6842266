/* The hive that the self-test's worker reports to: takes heartbeats on 127.0.0.1, one connection at a time, and stamps them.
 * Its own thread; the functions may be called by any. */
#ifndef WEIR_CLI_SELFTEST_HIVE_H
#define WEIR_CLI_SELFTEST_HIVE_H

#include <stdint.h>

#include "base/error.h"

typedef struct hive hive;

int hive_open(hive **out, int port, weir_error *err);
void hive_close(hive **h);
int hive_n_heartbeats(hive *h); /* well-formed ones */
int hive_n_bad(hive *h);        /* requests that were anything else */
int64_t hive_arrived_us(hive *h, int index);

#endif
