/* The commands of weir, and what several of them need. Each command returns the exit code of the process: 0, 1 (failed, with
 * "Error: reason" on stderr) or 2 (usage). Main thread. */
#ifndef WEIR_CLI_COMMANDS_H
#define WEIR_CLI_COMMANDS_H

#include "cli/options.h"
#include "weir/weir.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

int command_serve(const settings *s);
int command_run(const settings *s);
int command_convert(const settings *s);
int command_inspect(const settings *s);
int command_models(const settings *s);
int command_tokenize(const settings *s);
int command_detokenize(const settings *s);
int command_bench(const settings *s);
int command_perplexity(const settings *s);
int command_quantize(const settings *s);
int command_selftest(const settings *s);
int command_worker(const settings *s);         /* llm-worker-rbee */
int command_worker_variant(const settings *s); /* llm-worker-rbee-cpu, -cuda, -metal */

/* "Error: place: message" on stderr; returns EXIT_FAILED. */
int command_failed(const weir_error *err);
/* The same for a usage error; returns EXIT_USAGE. */
int command_misused(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Opens the model at `path`; progress on stderr if that is a terminal and
 * not s->quiet. Reports its own failure; NULL then. The caller closes it. */
weir_model *command_open_model(const settings *s, const char *path, bool vocab_only);
/* Options for opening the model, without progress. */
weir_model_options command_model_options(const settings *s);
/* Keeps the packed weights for the next start if --weights-cache asks for it, with progress as above; a warning on stderr says why
 * they could not be kept. `stop` (may be NULL) is asked while they are written. */
void command_save_weights(const settings *s, const weir_model *model, bool (*stop)(void));
/* The KV cache type of that name; NULL = the default. */
weir_kv_type command_kv_type(const char *name);
/* Engine options from the settings. */
weir_engine_options command_engine_options(const settings *s);
/* Sampling from the settings; a negative --seed takes one from the clock. */
weir_sampling command_sampling(const settings *s);
/* Adds --samplers to the chain; 0, or EXIT_USAGE with the reason printed. */
int command_sampler_order(const settings *s, weir_sampling *sampling);
/* The name of the built-in template for a model without one: that of the first known turn marker that is one of its tokens,
 * else "chatml". */
const char *command_fallback_template(const weir_model *model);
/* The source of the chat template, which the caller frees: --chat-template-file, --chat-template (a built-in name, Jinja text or
 * a file), the model's, or with a warning the fallback. */
int command_chat_template(const settings *s, const weir_model *model, char **source, weir_error *err);
/* The text of a token, "" for -1, in a string that the caller frees; NULL without memory. */
char *command_token_text(const weir_model *model, int32_t token);

/* The whole file ("-" = standard input), at most 1 GiB. */
int command_read_file(const char *path, buf *out, weir_error *err);
/* Writes to standard output and flushes; a failure (a full disk, a closed pipe) is EXIT_FAILED. */
int command_write(const char *bytes, size_t n_bytes);

#endif
