/* weir: an LLM worker as a library.
 *
 * A weir_model is an open model file: weights, tokeniser, metadata. It is immutable after weir_model_open and may be shared by
 * threads. A weir_engine owns the thread that generates, the queue in front of it and the KV cache behind it. A weir_job is one
 * request: submitted with token ids, it yields events (text chunks, then exactly one END or ERROR) through a bounded channel.
 * A weir_chat is a compiled chat template.
 *
 *     weir_model *model = NULL; weir_engine *engine = NULL; weir_job *job = NULL; weir_error err = {0};
 *     weir_model_open(&model, "model.gguf", NULL, &err);
 *     weir_engine_open(&engine, model, NULL, &err);
 *     weir_request req; weir_request_init(&req);
 *     req.tokens = ids; req.n_tokens = n; req.max_tokens = 64;
 *     weir_job_submit(engine, &req, &job, &err);
 *     weir_event ev;
 *     while (weir_job_wait(job, &ev, -1) > 0 && ev.type == WEIR_EVENT_TOKEN) fwrite(ev.text, 1, ev.text_bytes, stdout);
 *     weir_job_release(&job); weir_engine_close(&engine); weir_model_close(&model);
 *
 * Every `_close`/`_release` takes the address of the handle, accepts NULL and half-built objects, and sets the handle to NULL.
 * Strings are UTF-8 and end in NUL unless a length is given. The library never prints, exits or aborts. */
#ifndef WEIR_H
#define WEIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir_error.h"
#include "weir_version.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- model ------------------------------------------------------------------------------------------------------------ */

typedef struct weir_model weir_model;

/* Called on the opening thread while a model loads; `done` and `total` are bytes of weights. Return false to stop loading
 * (weir_model_open then fails with WEIR_E_CANCELLED). */
typedef bool (*weir_progress_fn)(void *user, uint64_t done, uint64_t total);

/* How packed weights are taken from a sidecar. Mapped, its pages are shared by all processes that serve the model; read into
 * memory of this process's own they are always in huge pages. */
typedef enum weir_weights_mode { WEIR_WEIGHTS_AUTO, WEIR_WEIGHTS_MAP, WEIR_WEIGHTS_READ } weir_weights_mode;

typedef struct weir_model_options {
    int32_t n_threads;         /* threads that pack weights; 0 = as many as the cgroup quota and affinity allow */
    const char *weights_cache; /* folder of the sidecar, a file with the packed weights; "" = the model's, or the user's cache folder
                                  (XDG_CACHE_HOME/weir or ~/.cache/weir) where that cannot be written; NULL = no sidecar */
    weir_weights_mode weights_mode; /* AUTO: mapped if the file system has it in huge pages, else read */
    const char *quantise;      /* type such as "Q4_K_M" that matrices in F32, F16 or BF16 are quantised to as they are packed, by the rules of
                                  weir quantize (no sidecar then); NULL = none */
    bool vocab_only;           /* tokeniser and metadata only; weir_engine_open then fails with WEIR_E_INVALID */
    weir_progress_fn progress; /* may be NULL */
    void *progress_user;
} weir_model_options;

typedef struct weir_model_info {
    const char *path;          /* as given */
    const char *architecture;  /* general.architecture */
    const char *name;          /* general.name, or the file's base name */
    const char *file_type;     /* for example "Q4_K_M", or the most common tensor type */
    const char *chat_template; /* tokenizer.chat_template, or NULL */
    const char *cpu_level;     /* kernels in use: "reference", "avx2", "avx512" */
    int32_t n_vocab, n_ctx_train, d_model, n_layer, n_head, n_head_kv, d_head;
    uint64_t n_params;         /* weights, counted over all tensors */
    uint64_t weight_bytes;     /* bytes of the tensors in the file(s) */
    uint64_t packed_bytes;     /* bytes of memory the packed weights take */
    bool weights_cached;       /* they came from the sidecar */
    const char *weights_cache_path; /* of the sidecar, there or to be written; NULL = none */
    const char *weights_cache_note; /* why a sidecar that is there was not used; NULL = it was used, or none is there */
} weir_model_info;

/* Opens a GGUF file (or the first part of a split one). `options` may be NULL. On failure *out is NULL. Errors: WEIR_E_IO
 * (cannot be opened or mapped), WEIR_E_FORMAT (malformed), WEIR_E_UNSUPPORTED (architecture, tensor type, tokeniser),
 * WEIR_E_NOMEM, WEIR_E_CANCELLED. Any thread. */
int weir_model_open(weir_model **out, const char *path, const weir_model_options *options, weir_error *err);
/* Writes the sidecar, so that the next weir_model_open with the same options needs no packing. 1 = written; 0 = nothing to do: none
 * wanted, it was loaded, it has been written meanwhile, or another process is writing it. Blocks as long as the disk takes; may run
 * on any thread while engines use the model, until the model is closed. `progress` (may be NULL) is called on that thread, with
 * bytes; false from it ends with WEIR_E_CANCELLED. Errors (nothing is left behind, the place is a path): WEIR_E_IO (folder or
 * disk), WEIR_E_LIMIT (too little space), WEIR_E_NOMEM. */
int weir_model_save_weights(const weir_model *model, weir_progress_fn progress, void *progress_user, weir_error *err);
/* The engines and chats made from the model must be closed first. */
void weir_model_close(weir_model **model);
/* Valid until the model is closed. */
const weir_model_info *weir_model_get_info(const weir_model *model);

/* Token ids of `text[n_bytes]`. `add_special` adds BOS/EOS where the model asks for it; `parse_special` turns the text of
 * control tokens into their ids. Writes at most `capacity` ids to `tokens` (which may be NULL when capacity is 0) and returns
 * the full count, which may exceed `capacity`; or WEIR_E_NOMEM. Any thread. */
int64_t weir_tokenize(const weir_model *model, const char *text, size_t n_bytes, bool add_special, bool parse_special,
                      int32_t *tokens, size_t capacity);
/* Bytes of one token, not necessarily whole UTF-8, not NUL-terminated; valid until the model is closed. `*n_bytes` gets the
 * length. Control tokens give their text when `special`, else nothing. NULL with *n_bytes = 0 for an id out of range. */
const char *weir_token_bytes(const weir_model *model, int32_t token, bool special, size_t *n_bytes);
/* Text of `tokens[n]` with the tokeniser's clean-up rules (the leading space of SPM is removed). The caller frees *text with
 * free(). Invalid ids give WEIR_E_INVALID. */
int weir_detokenize(const weir_model *model, const int32_t *tokens, size_t n, bool special, char **text, size_t *n_bytes,
                    weir_error *err);
bool weir_token_is_eog(const weir_model *model, int32_t token); /* ends a generation (EOS, EOT, ...) */
int32_t weir_token_bos(const weir_model *model);                /* -1 when the model has none */
int32_t weir_token_eos(const weir_model *model);                /* -1 when the model has none */
bool weir_model_adds_bos(const weir_model *model);

/* ---- chat templates --------------------------------------------------------------------------------------------------- */

typedef struct weir_chat weir_chat;

/* Compiles the Jinja template `source`. `bos` and `eos` are the texts of those tokens ("" when the model has none).
 * Errors: WEIR_E_FORMAT with line and column in the message, WEIR_E_LIMIT, WEIR_E_NOMEM. */
int weir_chat_open(weir_chat **out, const char *source, const char *bos, const char *eos, weir_error *err);
void weir_chat_close(weir_chat **chat);
/* The template as it was given; valid until it is closed. */
const char *weir_chat_source(const weir_chat *chat);
/* Renders a conversation. `variables_json[n_bytes]` is a JSON object holding `messages` and whatever else the template reads
 * (`tools`, `documents`, `add_generation_prompt`, chat_template_kwargs); bos_token and eos_token are added when it lacks them.
 * The caller frees *text with free(). Errors: WEIR_E_INVALID (the template raised an exception, or JSON is not an object),
 * WEIR_E_LIMIT (time, memory or depth bound), WEIR_E_NOMEM. Any thread; one weir_chat may render on several at once. */
int weir_chat_render(const weir_chat *chat, const char *variables_json, size_t n_bytes, char **text, size_t *text_bytes,
                     weir_error *err);

/* ---- grammars --------------------------------------------------------------------------------------------------------- */

/* A vocabulary prepared for grammars, with a cache of those compiled last. */
typedef struct weir_grammars weir_grammars;
/* A compiled grammar: immutable, shared by any number of jobs, on any threads. */
typedef struct weir_grammar weir_grammar;

typedef enum weir_grammar_kind {
    WEIR_GRAMMAR_JSON_SCHEMA, /* JSON texts that are valid under the schema (draft 2020-12); see docs/api.md for its keywords */
    WEIR_GRAMMAR_JSON_OBJECT, /* any JSON object; the text is not read */
    WEIR_GRAMMAR_REGEX,       /* as Python's re.fullmatch */
    WEIR_GRAMMAR_GBNF,        /* llama.cpp's notation, from the rule `root` */
    WEIR_GRAMMAR_TAGGED,      /* JSON in tags, the first of them open already: the text is the opening tag, a line end, the closing tag, a
                                 line end, a schema. An empty opening tag: one value only */
} weir_grammar_kind;

/* Any thread; a tenth of a second for a large vocabulary. The model may be closed before it. WEIR_E_NOMEM, WEIR_E_LIMIT. */
int weir_grammars_open(weir_grammars **out, const weir_model *model, weir_error *err);
/* Grammars opened from it stay valid. */
void weir_grammars_close(weir_grammars **grammars);
/* Compiles text[n_bytes], or takes it from the cache. The caller closes *out; jobs hold references of their own. Time and memory
 * are bounded (a few tenths of a second). Errors, with a byte offset or a JSON pointer as place: WEIR_E_FORMAT (not well-formed),
 * WEIR_E_UNSUPPORTED (what is not supported is named), WEIR_E_INVALID (no text can match), WEIR_E_LIMIT (too complex),
 * WEIR_E_NOMEM. Any thread. */
int weir_grammar_open(weir_grammar **out, weir_grammars *grammars, weir_grammar_kind kind, const char *text, size_t n_bytes, weir_error *err);
void weir_grammar_close(weir_grammar **grammar);

/* ---- engine ----------------------------------------------------------------------------------------------------------- */

typedef struct weir_engine weir_engine;

/* How the KV cache keeps a value. Q8_0 and Q4_0: blocks of 32 values of one head with a scale, 8.5 and 4.5 bits a value. */
typedef enum weir_kv_type { WEIR_KV_F16, WEIR_KV_BF16, WEIR_KV_Q8_0, WEIR_KV_Q4_0, WEIR_KV_F32, WEIR_N_KV_TYPES } weir_kv_type;

typedef struct weir_engine_options {
    int32_t n_threads;     /* compute threads; 0 = as many as the cgroup quota and affinity allow */
    int32_t n_ctx;         /* longest sequence in tokens; 0 = the model's training context, at most what the KV cache holds */
    int32_t n_parallel;    /* sequences that run at once; 0 = 64 */
    int32_t n_batch;       /* most tokens in one step; 0 = 512 */
    int32_t max_queue;     /* requests that may wait; 0 = 4096, -1 = unbounded */
    int64_t max_queue_tokens; /* prompt tokens of the requests that wait; 0 = 4,194,304, -1 = unbounded */
    int64_t kv_cache_bytes; /* size of the KV slab; 0 = n_parallel full contexts, at most a quarter of the free memory */
    int32_t n_draft;       /* most tokens guessed ahead of a sequence in one step; 0 = 16, -1 = none. Guesses change no answer: those
                              that the model would not have said are dropped. How many are made is learnt from what they bring. */
    bool no_prefix_cache;  /* keep nothing of prompts and answers for requests that begin alike. What is kept changes no answer. */
    const char *prefix_cache_file; /* where that is kept from one run to the next: read when the engine opens, written when it closes;
                              NULL = nowhere. A file of another model or format is ignored. */
    weir_kv_type cache_type_k, cache_type_v; /* of keys and values. Models with latent attention and encoders keep F32 whatever F16
                              or F32 says and refuse the rest; Q8_0 and Q4_0 need heads of a multiple of 32 values */
} weir_engine_options;

/* Starts the engine thread and its compute pool. `options` may be NULL. The model must outlive the engine.
 * Errors: WEIR_E_NOMEM (with the size that did not fit), WEIR_E_INVALID, WEIR_E_UNSUPPORTED (a cache type that the model's heads do
 * not fit), WEIR_E_INTERNAL (threads). */
int weir_engine_open(weir_engine **out, weir_model *model, const weir_engine_options *options, weir_error *err);
/* Cancels all jobs (each gets its terminal event, WEIR_E_CLOSED), joins the threads, frees. Jobs not yet released stay valid
 * for reading until released. */
void weir_engine_close(weir_engine **engine);
/* Refuses new jobs from now on (WEIR_E_CLOSED); those that run go on. Any thread. */
void weir_engine_drain(weir_engine *engine);

/* A snapshot of counters, each monotone unless marked as a gauge. Never blocks the engine. Any thread. */
typedef struct weir_stats {
    uint64_t n_running, n_waiting;         /* gauges: requests */
    uint64_t n_submitted, n_finished, n_cancelled, n_failed, n_refused;
    uint64_t prompt_tokens, cached_tokens, output_tokens, n_steps;
    uint64_t prompt_us, output_us;         /* engine time spent in prefill and in decode */
    uint64_t n_drafts, draft_tokens, draft_accepted; /* times that tokens were guessed, how many, and how many of them held */
    uint64_t kv_tokens_used, kv_tokens_total; /* gauges: that requests hold; that there are */
    uint64_t kv_tokens_kept;               /* gauge: that the prefix cache could give to requests that begin alike */
    uint64_t waiting_tokens;               /* gauge: prompt tokens of requests that wait */
    uint64_t queried_tokens;               /* prompt tokens that were looked for in the prefix cache; cached_tokens of them were found */
    uint64_t n_preemptions;                /* times that a request had to give its part of the KV cache to others */
    uint64_t recomputed_tokens;            /* that were computed again after that */
    const char *cache_type_k, *cache_type_v;  /* of the KV cache: "f16", "q8_0", ...; static; NULL = there is no engine yet */
    uint32_t kv_page_tokens;                  /* the KV cache is handed out in pages of so many tokens */
} weir_stats;
void weir_engine_get_stats(const weir_engine *engine, weir_stats *stats);
/* The longest sequence (prompt and output) in tokens that one request may have. */
int32_t weir_engine_n_ctx(const weir_engine *engine);

/* ---- jobs ------------------------------------------------------------------------------------------------------------- */

typedef struct weir_job weir_job;

typedef struct weir_logit_bias {
    int32_t token;
    float bias; /* added to the logit; -INFINITY bans the token */
} weir_logit_bias;

/* The steps between logits and a token, in the order in which they run by default (llama.cpp's). Logit bias and a grammar come
 * before all of them, the draw after. */
typedef enum weir_sampler {
    WEIR_SAMPLER_PENALTIES,   /* repetition, frequency, presence */
    WEIR_SAMPLER_DRY,
    WEIR_SAMPLER_TOP_N_SIGMA,
    WEIR_SAMPLER_TOP_K,
    WEIR_SAMPLER_TYPICAL,
    WEIR_SAMPLER_TOP_P,
    WEIR_SAMPLER_MIN_P,
    WEIR_SAMPLER_XTC,
    WEIR_SAMPLER_TEMPERATURE,
    WEIR_N_SAMPLERS,
} weir_sampler;

/* The step of a name (llama.cpp's, with "-" or "_", and its one-letter form), or -1. Any thread. */
int weir_sampler_named(const char *name);

enum { WEIR_MAX_CHAIN = 16, WEIR_MAX_DRY_BREAKERS = 64, WEIR_MAX_BREAKER_BYTES = 40 };

/* All zero, with temperature, top_p and repetition_penalty 1, is plain sampling. Formulas and their sources:
 * src/engine/sampler_chain.c, sampler_dry.c. */
typedef struct weir_sampling {
    float temperature;         /* 0 = greedy */
    float dynatemp_range;      /* 0 = off; the temperature varies by so much either way, with the entropy */
    float dynatemp_exponent;
    int32_t top_k;             /* 0 = off */
    float top_p;               /* 1 = off */
    float min_p;               /* 0 = off; drops tokens with p < min_p * p_max */
    float typical_p;           /* 0 or 1 = off; locally typical sampling */
    float top_n_sigma;         /* 0 or less = off; drops logits more than so many standard deviations below the best */
    float xtc_probability;     /* 0 = off; how often the most likely tokens but one are dropped */
    float xtc_threshold;       /* what counts as likely; over 0.5 = off */
    float repetition_penalty;  /* 1 = off; divides positive logits, multiplies negative ones (Keskar et al. 2019) */
    float frequency_penalty;   /* 0 = off; subtracted once per occurrence */
    float presence_penalty;    /* 0 = off; subtracted once if the token occurred */
    int32_t penalty_last_n;    /* how many of the last tokens, prompt included, the penalties see; -1 = all */
    float dry_multiplier;      /* 0 = off; penalty of tokens that go on with a repetition */
    float dry_base;            /* at least 1 */
    int32_t dry_allowed_length; /* repetitions shorter than this cost nothing */
    int32_t dry_penalty_last_n; /* -1 = all */
    const char *const *dry_breakers; /* [n_dry_breakers] texts over which no repetition reaches; copied at submission */
    size_t n_dry_breakers;
    int32_t mirostat;          /* 0 = off, or algorithm 1 or 2: then temperature and penalties apply, and no other step */
    float mirostat_tau;        /* the surprise to be kept, in bits */
    float mirostat_eta;        /* how fast */
    uint8_t chain[WEIR_MAX_CHAIN]; /* [n_chain] of weir_sampler: only these steps, in this order */
    int32_t n_chain;           /* 0 = all, in the default order */
    uint64_t seed;
    const weir_logit_bias *logit_bias; /* copied at submission; may be NULL */
    size_t n_logit_bias;
} weir_sampling;

/* Called when the job's channel goes from empty to non-empty, on the engine thread (or inside weir_job_cancel, when the job was
 * still queued): it must return at once and must not call into the job or the engine. */
typedef void (*weir_notify_fn)(void *user, weir_job *job);

typedef struct weir_request {
    const int32_t *tokens;   /* prompt, copied at submission; at least one */
    size_t n_tokens;
    int32_t max_tokens;      /* most tokens to sample; -1 = up to the end of the context */
    weir_sampling sampling;
    const char *const *stop; /* stop strings, UTF-8, not empty, copied at submission; the one that is complete first ends the job;
                                its text is not emitted */
    size_t n_stop;
    bool ignore_eos;         /* bans every end-of-generation token */
    bool special;            /* emit the text of control tokens */
    weir_grammar *grammar;   /* the answer is one of its texts, unless max_tokens cuts it short; for the engine's model; may be NULL */
    const char *grammar_after; /* the grammar holds for what follows this text in the answer; NULL = for all of it; copied */
    int32_t n_top_logprobs;  /* alternatives reported with each token event, 0..20; -1 = no log probabilities at all */
    int64_t timeout_ms;      /* 0 = none; counted from submission, ends the job with WEIR_E_TIMEOUT */
    int32_t priority;        /* lower values go first, and take place and memory from higher ones; 0 is the usual */
    const char *tenant;      /* whose request it is; copied; NULL = nobody's. Tenants of one priority get equal shares of the work,
                                however many requests each has */
    float tenant_weight;     /* the tenant's share against others' from now on; 0 = 1 */
    const char *cache_salt;  /* texts of different salts share nothing of the prefix cache; NULL = "" */
    bool no_prefix_cache;    /* neither uses the prefix cache nor leaves anything in it */
    const char *request_id;  /* for the log; copied; may be NULL */
    weir_notify_fn notify;   /* may be NULL */
    void *notify_user;
} weir_request;

/* Defaults: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, everything else of the chain off; penalties over the last 64 tokens;
 * seed 0, max_tokens -1, n_top_logprobs -1. What is off has llama.cpp's values beside its switch: DRY base 1.75, allowed length 2,
 * over the whole context, breakers "\n", ":", "\"", "*"; xtc_threshold 0.1; mirostat tau 5, eta 0.1. */
void weir_request_init(weir_request *request);

typedef enum weir_stop_reason {
    WEIR_STOP_NONE,      /* the job ended with an error */
    WEIR_STOP_EOS,       /* an end-of-generation token (not emitted) */
    WEIR_STOP_LENGTH,    /* max_tokens or the end of the context */
    WEIR_STOP_SEQUENCE,  /* a stop string */
} weir_stop_reason;
/* What logs call it: "none", "eos", "length", "stop". */
const char *weir_stop_name(weir_stop_reason reason);

typedef struct weir_top_logprob {
    int32_t token;
    float logprob; /* natural logarithm, of the distribution before temperature and truncation */
} weir_top_logprob;

typedef enum weir_event_type { WEIR_EVENT_TOKEN, WEIR_EVENT_END, WEIR_EVENT_ERROR } weir_event_type;

typedef struct weir_timings {
    int32_t n_prompt, n_cached, n_output; /* tokens; n_cached of n_prompt came from the prefix cache; n_output is without EOS */
    int32_t n_draft, n_draft_accepted;       /* tokens guessed ahead, and how many of them held */
    int64_t queue_us, prefill_us, decode_us; /* prefill ends with the first sampled token */
} weir_timings;

/* Whole code points only; text is held back only while it ends inside one or might begin a stop string. One event stands for
 * `n_tokens` sampled tokens, those whose own text begins in it: one unless text was held back (then more, or none where only the
 * rest of a token's text was left). Concatenating the text of all events gives the whole answer. */
typedef struct weir_event {
    weir_event_type type;
    /* TOKEN */
    uint32_t index;       /* 0, 1, 2, ... */
    const char *text;     /* valid until the next call on the job; never empty; NUL-terminated */
    size_t text_bytes;
    uint32_t n_tokens;
    const int32_t *tokens;               /* [n_tokens] */
    const float *logprobs;               /* [n_tokens], or NULL */
    const weir_top_logprob *top_logprobs; /* [n_tokens][n_top_logprobs], or NULL */
    /* END (and ERROR: timings so far) */
    weir_stop_reason stop_reason;
    const char *stop_text; /* the stop string that matched, or NULL */
    weir_timings timings;
    /* ERROR */
    int code;            /* WEIR_E_CANCELLED, WEIR_E_TIMEOUT, WEIR_E_CLOSED, WEIR_E_NOMEM, WEIR_E_INTERNAL, ... */
    const char *message; /* valid until the job is released */
} weir_event;

/* Queues a request and returns at once. On success the caller owns *out and must release it. Errors (and *out NULL):
 * WEIR_E_INVALID (no tokens, an id out of range, a sampling value that is not finite), WEIR_E_CONTEXT (the prompt does not fit;
 * the message has both numbers), WEIR_E_QUEUE_FULL, WEIR_E_CLOSED, WEIR_E_NOMEM. Any thread. */
int weir_job_submit(weir_engine *engine, const weir_request *request, weir_job **out, weir_error *err);
/* Takes the next event: 1 = *event is filled, 0 = none yet, or the terminal event was taken already. One reader thread. */
int weir_job_poll(weir_job *job, weir_event *event);
/* As weir_job_poll, but waits up to `timeout_ms` (-1 = forever). Returns 0 at once after the terminal event was taken. */
int weir_job_wait(weir_job *job, weir_event *event, int64_t timeout_ms);
/* Asks the engine to stop the job: within one layer of a prefill, one step of a decode, at once in the queue. The channel then
 * ends with an ERROR event, WEIR_E_CANCELLED, unless it had ended already. Idempotent. Any thread. */
void weir_job_cancel(weir_job *job);
/* Cancels if still running, then drops the caller's reference. `notify` is not called once this returned (it waits for a call
 * that is under way, so hold no lock that `notify` takes). Any thread. */
void weir_job_release(weir_job **job);
/* Position in the queue (0 = next), -1 once running or ended. */
int64_t weir_job_queue_position(const weir_job *job);
/* Tokens sampled so far. Any thread. */
int32_t weir_job_n_output(const weir_job *job);

/* Where a job is, to be shown. */
typedef struct weir_job_progress {
    bool running;                         /* it has left the queue and has not ended */
    int32_t n_prompt, n_output, max_output; /* tokens: of the prompt, sampled so far, to be sampled at most */
} weir_job_progress;
/* Any thread. */
void weir_job_get_progress(const weir_job *job, weir_job_progress *progress);

#ifdef __cplusplus
}
#endif
#endif
