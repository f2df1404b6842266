/* The commands of weir and of llm-worker-rbee, with their options. Constant; any thread. */
#ifndef WEIR_CLI_TABLES_H
#define WEIR_CLI_TABLES_H

#include "cli/options.h"

extern const command tables_commands[];
extern const size_t tables_n_commands;
extern const command tables_worker, tables_worker_variant;

#endif
