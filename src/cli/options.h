/* Command lines: tables of options from which parsing, environment variables, --help and the suggestion of the nearest name
 * come. Owns: the tables' form and the settings they fill. Knows nothing of what the commands do. Main thread, before others
 * start. */
#ifndef WEIR_CLI_OPTIONS_H
#define WEIR_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

enum { OPTIONS_MAX_ARGUMENTS = 4096, OPTIONS_MAX_LIST = 64 };

/* The values of an option that may be given more than once. */
typedef struct option_list {
    const char *items[OPTIONS_MAX_LIST];
    size_t n;
} option_list;

/* What all commands' options fill in; a command reads the members that its groups name. Texts point into argv, the environment
 * or static storage. */
typedef struct settings {
    /* model and engine */
    const char *model, *chat_template, *chat_template_file, *weights_cache, *weights_mode, *quant;
    int64_t threads, ctx_size, parallel, batch_size, max_queue, max_queue_tokens, kv_cache_mib, draft_max;
    const char *prefix_cache_file, *cache_type_k, *cache_type_v;
    bool no_spec, no_prefix_cache;
    /* sampling */
    int64_t predict, top_k, seed, repeat_last_n;
    double temperature, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty;
    double dynatemp_range, dynatemp_exponent, typical_p, top_n_sigma, xtc_probability, xtc_threshold;
    double dry_multiplier, dry_base, mirostat_tau, mirostat_eta;
    int64_t dry_allowed_length, dry_penalty_last_n, mirostat;
    option_list dry_breakers;
    const char *samplers;
    const char *json_schema, *json_schema_file, *grammar, *grammar_file;
    bool ignore_eos;
    /* serve */
    const char *host, *api_key, *api_key_file, *alias;
    int64_t port;
    double drain_timeout, request_timeout;
    /* log */
    const char *log_format;
    bool verbose, quiet;
    /* run */
    const char *prompt, *file, *system;
    bool raw;
    /* inspect, tokenize, detokenize */
    bool json, tensors, full, check, ids, no_bos, no_parse_special, special;
    /* bench */
    const char *bench_prompt, *bench_generate, *bench_depth, *bench_threads, *bench_batch, *output;
    const char *batched_prompt, *batched_generate, *batched_parallel;
    int64_t repetitions;
    bool no_warmup, profile, limits;
    /* perplexity */
    const char *reference;
    /* quantize */
    const char *imatrix, *output_tensor_type, *token_embedding_type, *keep_split;
    option_list tensor_types;
    bool allow_requantize, leave_output_tensor, pure, dry_run;
    /* worker, and selftest */
    const char *worker_id, *model_ref, *backend, *hive_url, *queen_url, *callback_url, *worker_host;
    int64_t device, hive_port, timeout_s;
    bool local_mode;

    const char *arguments[OPTIONS_MAX_ARGUMENTS]; /* what is no option, in order */
    size_t n_arguments;
} settings;

typedef enum option_type { OPTION_SWITCH, OPTION_INTEGER, OPTION_NUMBER, OPTION_TEXT, OPTION_LIST } option_type;

typedef struct option {
    const char *name;       /* long name, without the dashes */
    const char *other_name; /* a second long name, or NULL */
    const char *short_name; /* without the dash, one or more letters; or NULL */
    option_type type;
    size_t offset;        /* of the member in settings: bool, int64_t, double, const char * or option_list */
    const char *value;    /* how help calls the value */
    const char *fallback; /* the default as it would be typed; NULL leaves the member as zero */
    const char *help;
    double min, max;     /* of a number; both 0: unlimited */
    const char *choices; /* "a|b|c": the only texts allowed; NULL = any */
    bool required;
} option;

typedef struct option_group {
    const char *title; /* of the section in help */
    const option *rows;
    size_t n_rows;
} option_group;

enum { COMMAND_MAX_GROUPS = 6 };

typedef struct command {
    const char *name, *summary;
    const char *arguments; /* how help calls the arguments that are no options; NULL = none are allowed */
    const char *details;   /* more text for help, or NULL */
    const option_group *groups[COMMAND_MAX_GROUPS]; /* ends at the first NULL */
    int (*run)(const settings *s);                  /* the process's exit code */
    bool strict; /* the worker: an option may not be repeated, and no environment variable stands for it */
} command;

/* Fills *s from defaults, then environment (WEIR_ and the long name in capitals, "-" as "_"), then argv[0..argc), which holds
 * what follows the command's name. 0; 1 when --help was among them; WEIR_E_INVALID, with the nearest name for an unknown
 * option. */
int options_parse(const command *c, int argc, char **argv, settings *s, weir_error *err);

/* Appends the help text of a command; `program` is how it is called, for example "weir serve". */
void options_help(const command *c, const char *program, buf *out);

/* The environment variable of an option, in `out`. */
void options_variable(const option *o, char out[64]);

/* Of names[n], the one nearest to `word`, or NULL when none is near. */
const char *options_nearest(const char *word, const char *const *names, size_t n);

#endif
