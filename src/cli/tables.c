/* The tables of commands and their options. See tables.h. */
#include "cli/tables.h"

#include "cli/commands.h"

#define MEMBER(m) offsetof(settings, m)
#define GROUP(heading, table) ((option_group){.title = (heading), .rows = (table), .n_rows = sizeof(table) / sizeof(table)[0]})
#define LIMIT 2147483647
/* `fallback` is what the command does when nothing is said. */
#define WEIGHTS_ROWS(fallback)                                                                                                   \
    {"weights-cache", NULL, NULL, OPTION_TEXT, MEMBER(weights_cache), "DIR|auto|off", fallback,                                  \
     "where packed weights are kept for the next start, in a file that may be deleted; auto = beside the model, or in the user's " \
     "cache folder"},                                                                                                            \
    {"weights-mode", NULL, NULL, OPTION_TEXT, MEMBER(weights_mode), "MODE", "auto",                                              \
     "how they are taken from there; auto = mapped if that gives huge pages, else read", 0, 0, "auto|map|read"}
#define CACHE_ROWS                                                                                                               \
    {"cache-type-k", NULL, "ctk", OPTION_TEXT, MEMBER(cache_type_k), "TYPE", "f16",                                              \
     "how the KV cache keeps keys; q8_0 and q4_0 take 8.5 and 4.5 bits a value", 0, 0, "f16|bf16|q8_0|q4_0|f32"},                \
    {"cache-type-v", NULL, "ctv", OPTION_TEXT, MEMBER(cache_type_v), "TYPE", "f16", "and values", 0, 0, "f16|bf16|q8_0|q4_0|f32"}

static const option model_rows[] = {
    {"model", NULL, "m", OPTION_TEXT, MEMBER(model), "FILE", NULL, "the model: a GGUF file, the first part of a split one, or a Hugging Face folder"},
    {"threads", NULL, "t", OPTION_INTEGER, MEMBER(threads), "N", "0",
     "compute threads; 0 = as many as the cgroup quota and the affinity mask allow", 0, 1024},
    WEIGHTS_ROWS("auto"),
    {"quant", NULL, NULL, OPTION_TEXT, MEMBER(quant), "TYPE", NULL,
     "quantise matrices in F32, F16 or BF16 as they are loaded, by the rules of weir quantize: Q8_0, Q4_K_M, ..."},
    {"quiet", NULL, "q", OPTION_SWITCH, MEMBER(quiet), NULL, NULL, "no progress while the model loads"},
};
static const option_group model_group = GROUP("Model", model_rows);

static const option engine_rows[] = {
    {"ctx-size", NULL, "c", OPTION_INTEGER, MEMBER(ctx_size), "N", "0",
     "longest sequence in tokens, prompt and answer; 0 = the model's training context, at most what the KV cache holds", 0,
     LIMIT},
    {"parallel", NULL, "np", OPTION_INTEGER, MEMBER(parallel), "N", "0", "requests that are computed at once; 0 = 64", 0, 4096},
    {"batch-size", NULL, "b", OPTION_INTEGER, MEMBER(batch_size), "N", "0", "most tokens in one step; 0 = 512", 0, 65536},
    {"max-queue", NULL, NULL, OPTION_INTEGER, MEMBER(max_queue), "N", "0",
     "requests that may wait; more are refused; 0 = 4096, -1 = unbounded", -1, LIMIT},
    {"max-queue-tokens", NULL, NULL, OPTION_INTEGER, MEMBER(max_queue_tokens), "N", "0",
     "prompt tokens of the requests that may wait; 0 = 4194304, -1 = unbounded", -1, LIMIT},
    {"no-prefix-cache", "no-cache-prompt", NULL, OPTION_SWITCH, MEMBER(no_prefix_cache), NULL, NULL,
     "keep nothing of prompts and answers for requests that begin alike"},
    {"prefix-cache-file", NULL, NULL, OPTION_TEXT, MEMBER(prefix_cache_file), "FILE", NULL,
     "read it at the start and write it at the end, so that a restart keeps the prefix cache; it holds what users wrote"},
    {"kv-cache-size", NULL, NULL, OPTION_INTEGER, MEMBER(kv_cache_mib), "MIB", "0",
     "memory for keys and values; 0 = a full context for each sequence, at most a quarter of the free memory", 0, 1 << 30},
    CACHE_ROWS,
    {"no-spec", NULL, NULL, OPTION_SWITCH, MEMBER(no_spec), NULL, NULL,
     "no speculation: otherwise tokens that the text so far suggests are computed ahead, where that saves time"},
    {"draft-max", "spec-draft-n-max", NULL, OPTION_INTEGER, MEMBER(draft_max), "N", "0",
     "most tokens that are computed ahead for a request in one step; 0 = 16", 0, 32},
};
static const option_group engine_group = GROUP("Engine", engine_rows);

static const option sampling_rows[] = {
    {"predict", "n-predict", "n", OPTION_INTEGER, MEMBER(predict), "N", "-1",
     "most tokens to generate; -1 = up to the end of the context", -1, LIMIT},
    {"temp", "temperature", NULL, OPTION_NUMBER, MEMBER(temperature), "X", "0.8",
     "temperature; 0 = always the most likely token", 0, 100},
    {"top-k", NULL, NULL, OPTION_INTEGER, MEMBER(top_k), "N", "40", "keep the N most likely tokens; 0 = all", 0, LIMIT},
    {"top-p", NULL, NULL, OPTION_NUMBER, MEMBER(top_p), "X", "0.95",
     "keep the most likely tokens up to this total probability; 1 = all", 0, 1},
    {"min-p", NULL, NULL, OPTION_NUMBER, MEMBER(min_p), "X", "0.05",
     "drop tokens less likely than X times the most likely one; 0 = none", 0, 1},
    {"samplers", NULL, NULL, OPTION_TEXT, MEMBER(samplers), "NAME;...", NULL,
     "only these steps, in this order; the default is penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"},
    {"typical", "typical-p", NULL, OPTION_NUMBER, MEMBER(typical_p), "X", "1",
     "keep the tokens that are nearest to the expected surprise, up to this total probability; 1 = all", 0, 1},
    {"top-n-sigma", "top-nsigma", NULL, OPTION_NUMBER, MEMBER(top_n_sigma), "X", "-1",
     "keep logits at most X standard deviations below the best; -1 = all", -1, 1000},
    {"xtc-probability", NULL, NULL, OPTION_NUMBER, MEMBER(xtc_probability), "X", "0",
     "how often the likely tokens but the least likely of them are dropped; 0 = never", 0, 1},
    {"xtc-threshold", NULL, NULL, OPTION_NUMBER, MEMBER(xtc_threshold), "X", "0.1", "the probability that counts as likely there", 0, 1},
    {"dynatemp-range", NULL, NULL, OPTION_NUMBER, MEMBER(dynatemp_range), "X", "0",
     "the temperature varies by up to X with the entropy; 0 = not", 0, 100},
    {"dynatemp-exp", NULL, NULL, OPTION_NUMBER, MEMBER(dynatemp_exponent), "X", "1", "exponent of that entropy", 0, 100},
    {"dry-multiplier", NULL, NULL, OPTION_NUMBER, MEMBER(dry_multiplier), "X", "0",
     "penalty of tokens that go on with a repetition (DRY); 0 = none", 0, 1000},
    {"dry-base", NULL, NULL, OPTION_NUMBER, MEMBER(dry_base), "X", "1.75", "by which it grows with each repeated token", 1, 1000},
    {"dry-allowed-length", NULL, NULL, OPTION_INTEGER, MEMBER(dry_allowed_length), "N", "2", "repetitions that cost nothing are shorter", 0, LIMIT},
    {"dry-penalty-last-n", NULL, NULL, OPTION_INTEGER, MEMBER(dry_penalty_last_n), "N", "-1",
     "how many of the last tokens it sees; -1 = all", -1, LIMIT},
    {"dry-sequence-breaker", NULL, NULL, OPTION_LIST, MEMBER(dry_breakers), "TEXT", NULL,
     "text over which no repetition reaches, instead of newline, colon, quote and asterisk; may be repeated; none = no such text"},
    {"mirostat", NULL, NULL, OPTION_INTEGER, MEMBER(mirostat), "N", "0",
     "keep the surprise constant, by algorithm 1 or 2, instead of the steps but penalties and temperature; 0 = off", 0, 2},
    {"mirostat-ent", NULL, NULL, OPTION_NUMBER, MEMBER(mirostat_tau), "X", "5", "that surprise (tau), in bits", 0, 100},
    {"mirostat-lr", NULL, NULL, OPTION_NUMBER, MEMBER(mirostat_eta), "X", "0.1", "how fast it is corrected (eta)", 0, 1},
    {"repeat-penalty", NULL, NULL, OPTION_NUMBER, MEMBER(repeat_penalty), "X", "1",
     "penalty for tokens that occurred; 1 = none", 0.01, 100},
    {"repeat-last-n", NULL, NULL, OPTION_INTEGER, MEMBER(repeat_last_n), "N", "64",
     "how many of the last tokens the penalties see; -1 = all", -1, LIMIT},
    {"frequency-penalty", NULL, NULL, OPTION_NUMBER, MEMBER(frequency_penalty), "X", "0",
     "penalty for each occurrence; 0 = none", -100, 100},
    {"presence-penalty", NULL, NULL, OPTION_NUMBER, MEMBER(presence_penalty), "X", "0", "penalty for having occurred; 0 = none",
     -100, 100},
    {"seed", NULL, "s", OPTION_INTEGER, MEMBER(seed), "N", "-1", "seed of the random numbers; -1 = another one each time"},
    {"ignore-eos", NULL, NULL, OPTION_SWITCH, MEMBER(ignore_eos), NULL, NULL, "never generate an end-of-text token"},
};
static const option_group sampling_group = GROUP("Sampling", sampling_rows);

static const option chat_rows[] = {
    {"chat-template", NULL, NULL, OPTION_TEXT, MEMBER(chat_template), "NAME|FILE|JINJA", NULL,
     "chat template instead of the model's: a built-in name (weir models lists them), a file or Jinja text"},
    {"chat-template-file", NULL, NULL, OPTION_TEXT, MEMBER(chat_template_file), "FILE", NULL, "the same, always a file"},
};
static const option_group chat_group = GROUP("Chat", chat_rows);

static const option server_rows[] = {
    {"host", NULL, NULL, OPTION_TEXT, MEMBER(host), "ADDRESS", "127.0.0.1", "address to listen on"},
    {"port", NULL, NULL, OPTION_INTEGER, MEMBER(port), "N", "8080", "port to listen on; 0 = any free one, which the log names",
     0, 65535},
    {"api-key", NULL, NULL, OPTION_TEXT, MEMBER(api_key), "KEY[,KEY...]", NULL, "a request needs one of these bearer tokens"},
    {"api-key-file", NULL, NULL, OPTION_TEXT, MEMBER(api_key_file), "FILE", NULL, "the same, one key a line, behind it name=NAME, weight=X (its share of the machine) and priority=N as wanted"},
    {"alias", NULL, "a", OPTION_TEXT, MEMBER(alias), "NAME", NULL,
     "the model's name in /v1/models and in replies; else the file's name"},
    {"timeout", NULL, NULL, OPTION_NUMBER, MEMBER(request_timeout), "SECONDS", "0",
     "time limit of requests that have no field timeout, from their arrival; 0 = none", 0, 7 * 24 * 3600},
    {"drain-timeout", NULL, NULL, OPTION_NUMBER, MEMBER(drain_timeout), "SECONDS", "25",
     "after SIGTERM or SIGINT: how long requests that were accepted may go on; 0 = they are cancelled at once", 0, 24 * 3600},
};
static const option_group server_group = GROUP("Server", server_rows);

static const option log_rows[] = {
    {"log-format", NULL, NULL, OPTION_TEXT, MEMBER(log_format), "FORMAT", "human", "form of the log lines", 0, 0, "human|json"},
    {"verbose", NULL, "v", OPTION_SWITCH, MEMBER(verbose), NULL, NULL, "log more"},
};
static const option_group log_group = GROUP("Log", log_rows);

static const option run_rows[] = {
    {"prompt", NULL, "p", OPTION_TEXT, MEMBER(prompt), "TEXT", NULL, "the question; else the arguments, else standard input"},
    {"file", NULL, "f", OPTION_TEXT, MEMBER(file), "FILE", NULL, "the question from a file; - = standard input"},
    {"system-prompt", NULL, "sys", OPTION_TEXT, MEMBER(system), "TEXT", NULL, "the system message"},
    {"json-schema", NULL, "j", OPTION_TEXT, MEMBER(json_schema), "SCHEMA", NULL,
     "the answer is JSON that is valid under this schema; {} = any JSON"},
    {"json-schema-file", NULL, "jf", OPTION_TEXT, MEMBER(json_schema_file), "FILE", NULL, "the same, from a file"},
    {"grammar", NULL, NULL, OPTION_TEXT, MEMBER(grammar), "GBNF", NULL, "the answer is a text of this grammar, from its rule root"},
    {"grammar-file", NULL, NULL, OPTION_TEXT, MEMBER(grammar_file), "FILE", NULL, "the same, from a file"},
    {"raw", NULL, NULL, OPTION_SWITCH, MEMBER(raw), NULL, NULL, "continue the text as it is, without a chat template"},
};
static const option_group run_group = GROUP("Question", run_rows);

static const option inspect_rows[] = {
    {"model", NULL, "m", OPTION_TEXT, MEMBER(model), "FILE", NULL, "the file, instead of the argument"},
    {"json", NULL, NULL, OPTION_SWITCH, MEMBER(json), NULL, NULL, "one JSON object instead of text"},
    {"tensors", NULL, NULL, OPTION_SWITCH, MEMBER(tensors), NULL, NULL, "list every tensor"},
    {"full", NULL, NULL, OPTION_SWITCH, MEMBER(full), NULL, NULL, "arrays and strings in full length"},
    {"check", NULL, NULL, OPTION_SWITCH, MEMBER(check), NULL, NULL,
     "verify the file instead: values and scales, vocabulary, chat template; exit code 1 when something is wrong"},
    {"threads", NULL, "t", OPTION_INTEGER, MEMBER(threads), "N", "0",
     "threads of --check; 0 = as many as the cgroup quota and the affinity mask allow", 0, 1024},
    {"quiet", NULL, "q", OPTION_SWITCH, MEMBER(quiet), NULL, NULL, "no progress"},
};
static const option_group inspect_group = GROUP("Options", inspect_rows);

static const option convert_rows[] = {
    {"quant", NULL, NULL, OPTION_TEXT, MEMBER(quant), "TYPE", NULL, "quantise on the way, as weir quantize does"},
    {"threads", NULL, "t", OPTION_INTEGER, MEMBER(threads), "N", "0", "threads that quantise; 0 = as many as are available", 0, 1024},
    {"quiet", NULL, "q", OPTION_SWITCH, MEMBER(quiet), NULL, NULL, "no progress"},
};
static const option_group convert_group = GROUP("Options", convert_rows);

static const option tokenize_rows[] = {
    {"model", NULL, "m", OPTION_TEXT, MEMBER(model), "FILE", NULL, "the model: a GGUF file"},
    {"prompt", NULL, "p", OPTION_TEXT, MEMBER(prompt), "TEXT", NULL, "the text; else the arguments, else standard input"},
    {"file", NULL, "f", OPTION_TEXT, MEMBER(file), "FILE", NULL, "the text from a file; - = standard input"},
    {"ids", NULL, NULL, OPTION_SWITCH, MEMBER(ids), NULL, NULL, "print only the ids, as [1, 2, 3]"},
    {"no-bos", NULL, NULL, OPTION_SWITCH, MEMBER(no_bos), NULL, NULL, "do not add the special tokens that the model asks for"},
    {"no-parse-special", NULL, NULL, OPTION_SWITCH, MEMBER(no_parse_special), NULL, NULL,
     "take the text of control tokens as text"},
};
static const option_group tokenize_group = GROUP("Options", tokenize_rows);

static const option detokenize_rows[] = {
    {"model", NULL, "m", OPTION_TEXT, MEMBER(model), "FILE", NULL, "the model: a GGUF file"},
    {"special", NULL, NULL, OPTION_SWITCH, MEMBER(special), NULL, NULL, "print the text of control tokens, too"},
};
static const option_group detokenize_group = GROUP("Options", detokenize_rows);

static const option bench_rows[] = {
    {"model", NULL, "m", OPTION_TEXT, MEMBER(model), "FILE", NULL, "the model: a GGUF file"},
    {"n-prompt", NULL, "p", OPTION_TEXT, MEMBER(bench_prompt), "N[,N...]", "512", "prompt lengths to measure; 0 = none"},
    {"n-gen", NULL, "n", OPTION_TEXT, MEMBER(bench_generate), "N[,N...]", "128", "answer lengths to measure; 0 = none"},
    {"n-depth", NULL, "d", OPTION_TEXT, MEMBER(bench_depth), "N[,N...]", "0", "tokens in the sequence before the measurement"},
    {"threads", NULL, "t", OPTION_TEXT, MEMBER(bench_threads), "N[,N...]", "0",
     "compute threads; 0 = as many as are available"},
    {"batch-size", "ubatch-size", "b", OPTION_TEXT, MEMBER(bench_batch), "N[,N...]", "512",
     "most tokens in one step: prompts are read in pieces of this size"},
    {"batched-parallel", NULL, "npl", OPTION_TEXT, MEMBER(batched_parallel), "N[,N...]", NULL,
     "instead: so many sequences at once, each with a prompt and an answer"},
    {"batched-prompt", NULL, "npp", OPTION_TEXT, MEMBER(batched_prompt), "N[,N...]", "128", "with -npl: prompt length of each sequence"},
    {"batched-gen", NULL, "ntg", OPTION_TEXT, MEMBER(batched_generate), "N[,N...]", "128", "with -npl: answer length of each sequence"},
    {"repetitions", NULL, "r", OPTION_INTEGER, MEMBER(repetitions), "N", "5", "times that each test runs", 1, 100000},
    {"output", NULL, "o", OPTION_TEXT, MEMBER(output), "FORMAT", "md", "form of the results", 0, 0, "md|json|jsonl|csv"},
    {"profile", NULL, NULL, OPTION_SWITCH, MEMBER(profile), NULL, NULL,
     "also show where the time of a step goes, and how near each operation is to the machine's limit"},
    {"limits", NULL, NULL, OPTION_SWITCH, MEMBER(limits), NULL, NULL,
     "instead of a model, measure the machine: multiply-accumulates and memory bandwidth"},
    {"no-warmup", NULL, NULL, OPTION_SWITCH, MEMBER(no_warmup), NULL, NULL, "measure at once, without a run before"},
    CACHE_ROWS,
    WEIGHTS_ROWS("off"),
    {"quiet", NULL, "q", OPTION_SWITCH, MEMBER(quiet), NULL, NULL, "no progress while the model loads"},
};
static const option_group bench_group = GROUP("Options", bench_rows);

static const option perplexity_rows[] = {
    {"file", NULL, "f", OPTION_TEXT, MEMBER(file), "FILE", NULL, "the text; - = standard input"},
    {"reference", NULL, NULL, OPTION_TEXT, MEMBER(reference), "FILE", NULL,
     "a second model, with the same tokens: the KL divergence from it is measured too"},
    {"ctx-size", NULL, "c", OPTION_INTEGER, MEMBER(ctx_size), "N", "512", "tokens in a chunk", 2, 1 << 20},
    CACHE_ROWS,
    {"json", NULL, NULL, OPTION_SWITCH, MEMBER(json), NULL, NULL, "one JSON object instead of text"},
};
static const option_group perplexity_group = GROUP("Text", perplexity_rows);

static const option quantize_rows[] = {
    {"imatrix", NULL, NULL, OPTION_TEXT, MEMBER(imatrix), "FILE", NULL, "importance matrix, in either form of llama-imatrix"},
    {"threads", NULL, "t", OPTION_INTEGER, MEMBER(threads), "N", "0",
     "threads; 0 = as many as the cgroup quota and the affinity mask allow", 0, 1024},
    {"pure", NULL, NULL, OPTION_SWITCH, MEMBER(pure), NULL, NULL, "the same format for all matrices, without a mix"},
    {"output-tensor-type", NULL, NULL, OPTION_TEXT, MEMBER(output_tensor_type), "FORMAT", NULL, "format of output.weight"},
    {"token-embedding-type", NULL, NULL, OPTION_TEXT, MEMBER(token_embedding_type), "FORMAT", NULL,
     "format of the token embeddings"},
    {"tensor-type", NULL, NULL, OPTION_LIST, MEMBER(tensor_types), "REGEX=FORMAT", NULL,
     "format of the tensors whose name matches; may be repeated, the first that matches counts"},
    {"allow-requantize", NULL, NULL, OPTION_SWITCH, MEMBER(allow_requantize), NULL, NULL,
     "take input that is quantised already, which loses more than quantising the original"},
    {"leave-output-tensor", NULL, NULL, OPTION_SWITCH, MEMBER(leave_output_tensor), NULL, NULL,
     "keep output.weight as it is"},
    {"keep-split", NULL, NULL, OPTION_TEXT, MEMBER(keep_split), "no", "no", "the parts of a split model become one file", 0, 0,
     "no"},
    {"dry-run", NULL, NULL, OPTION_SWITCH, MEMBER(dry_run), NULL, NULL, "only show what each tensor would become; needs no OUT"},
    {"verbose", NULL, "v", OPTION_SWITCH, MEMBER(verbose), NULL, NULL, "show what each tensor becomes"},
    {"quiet", NULL, "q", OPTION_SWITCH, MEMBER(quiet), NULL, NULL, "no progress"},
};
static const option_group quantize_group = GROUP("Options", quantize_rows);

static const option selftest_rows[] = {
    {"worker-id", NULL, NULL, OPTION_TEXT, MEMBER(worker_id), "ID", "test-worker", "the worker's id"},
    {"backend", NULL, NULL, OPTION_TEXT, MEMBER(backend), "NAME", "cpu", "passed to the worker"},
    {"device", NULL, NULL, OPTION_INTEGER, MEMBER(device), "N", "0", "passed to the worker", 0, 4294967295.0},
    {"port", NULL, NULL, OPTION_INTEGER, MEMBER(port), "N", "18081", "the worker's port", 1, 65535},
    {"hive-port", NULL, NULL, OPTION_INTEGER, MEMBER(hive_port), "N", "19200", "the port of the hive that stands in", 1, 65535},
    {"timeout", NULL, NULL, OPTION_INTEGER, MEMBER(timeout_s), "SECONDS", "30", "until the worker must be healthy", 1, 86400},
};
static const option_group selftest_group = GROUP("Self-test", selftest_rows);

static const option worker_rows[] = {
    {"worker-id", NULL, NULL, OPTION_TEXT, MEMBER(worker_id), "ID", NULL, "opaque id, echoed in heartbeats", .required = true},
    {"model", NULL, NULL, OPTION_TEXT, MEMBER(model), "FILE", NULL, "the model: a GGUF file", .required = true},
    {"model-ref", NULL, NULL, OPTION_TEXT, MEMBER(model_ref), "REF", NULL,
     "the model's name in heartbeats and replies; else --model"},
    {"port", NULL, NULL, OPTION_INTEGER, MEMBER(port), "N", NULL, "port to listen on", 0, 65535, .required = true},
    {"hive-url", NULL, NULL, OPTION_TEXT, MEMBER(hive_url), "URL", NULL, "base URL that heartbeats go to, in the hive's form"},
    {"queen-url", NULL, NULL, OPTION_TEXT, MEMBER(queen_url), "URL", NULL, "the same, in the queen's form"},
    {"callback-url", NULL, NULL, OPTION_TEXT, MEMBER(callback_url), "URL", NULL, "told once, when the worker is ready"},
    {"backend", NULL, NULL, OPTION_TEXT, MEMBER(backend), "NAME", "cpu", "named in heartbeats"},
    WEIGHTS_ROWS("auto"),
    CACHE_ROWS,
};
static const option_group worker_group = GROUP("Options", worker_rows);

static const option worker_main_rows[] = {
    {"device", NULL, NULL, OPTION_INTEGER, MEMBER(device), "N", "0", "index of the device, named in heartbeats", 0,
     4294967295.0},
    {"cuda-device", "metal-device", NULL, OPTION_INTEGER, MEMBER(device), "N", NULL, "the same", 0, 4294967295.0},
    {"local-mode", NULL, NULL, OPTION_SWITCH, MEMBER(local_mode), NULL, NULL, "listen on 127.0.0.1 without authentication"},
};
static const option_group worker_main_group = GROUP("Device and network", worker_main_rows);

static const option worker_variant_rows[] = {
    {"cuda-device", NULL, NULL, OPTION_INTEGER, MEMBER(device), "N", "0", "index of the device, named in heartbeats", 0,
     4294967295.0},
    {"metal-device", NULL, NULL, OPTION_INTEGER, MEMBER(device), "N", NULL, "the same", 0, 4294967295.0},
};
static const option_group worker_variant_group = GROUP("Device", worker_variant_rows);

const command tables_commands[] = {
    {"serve",
     "Serves a model over HTTP.",
     NULL,
     NULL,
     {&model_group, &engine_group, &server_group, &chat_group, &log_group},
     command_serve},
    {"run",
     "Answers one question, or chats on a terminal; the answer is streamed.",
     "[QUESTION...]",
     "Ctrl-C stops the answer. Without a question, a terminal starts a chat; /exit or Ctrl-D ends it.",
     {&run_group, &model_group, &engine_group, &sampling_group, &chat_group},
     command_run},
    {"inspect", "Shows what is in a GGUF file or a Hugging Face folder.", "FILE", NULL, {&inspect_group}, command_inspect},
    {"convert", "Makes a GGUF file of a Hugging Face folder.", "FOLDER FILE", NULL, {&convert_group}, command_convert},
    {"models",
     "Lists what can be run: architectures, block formats and their kernels, tokenisers, chat templates.",
     NULL,
     "The output is docs/models.md.",
     {0},
     command_models},
    {"tokenize", "Shows the tokens of a text.", "[TEXT...]", NULL, {&tokenize_group}, command_tokenize},
    {"detokenize",
     "Shows the text of tokens.",
     "[ID...]",
     "Ids are separated by anything but digits; without any, they come from standard input.",
     {&detokenize_group},
     command_detokenize},
    {"bench", "Measures the speed of prompts and answers.", NULL, NULL, {&bench_group}, command_bench},
    {"perplexity",
     "Measures how well a model predicts a text.",
     "[FILE]",
     NULL,
     {&perplexity_group, &model_group},
     command_perplexity},
    {"quantize",
     "Writes a GGUF file in a smaller format.",
     "IN OUT TYPE [THREADS]",
     "TYPE is a name as llama-quantize has them (Q4_K_M, Q8_0, IQ4_XS, ...; COPY only merges parts), or its number. IN may be F32, "
     "F16 or BF16; the first part of a split model brings in the others.",
     {&quantize_group},
     command_quantize},
    {"selftest",
     "Runs a worker against the wire contract and measures its success criteria.",
     NULL,
     NULL,
     {&selftest_group, &model_group},
     command_selftest},
};
const size_t tables_n_commands = sizeof tables_commands / sizeof tables_commands[0];

const command tables_worker = {
    "llm-worker-rbee",
    "Serves a model as a worker of a hive.",
    NULL,
    "LLORCH_API_TOKEN holds the bearer token without --local-mode; LLORCH_LOG_FORMAT=json makes the log lines JSON.",
    {&worker_group, &worker_main_group},
    command_worker,
    .strict = true};

const command tables_worker_variant = {"llm-worker-rbee-VARIANT",
                                       "Serves a model as a worker of a hive, on all addresses.",
                                       NULL,
                                       "LLORCH_API_TOKEN, if not empty, holds the bearer token. Log lines are JSON.",
                                       {&worker_group, &worker_variant_group},
                                       command_worker_variant,
                                       .strict = true};
