/* weir run: one answer, or a chat on a terminal, streamed. Ctrl-C stops the answer; while nothing is being answered it ends the
 * program. Two threads: the main one, and the engine's inside the library. */
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"

typedef struct conversation {
    const settings *s;
    weir_model *model;
    weir_engine *engine;
    weir_chat *chat;  /* NULL: raw text */
    json_t *messages; /* array of {role, content} */
    weir_grammar *grammar; /* NULL: any answer will do */
} conversation;

static volatile sig_atomic_t interrupted;
static void on_interrupt(int signal) {
    (void)signal;
    if (interrupted++) _exit(130);
}

/* Ctrl-C interrupts a read of the terminal, too. */
static void catch_interrupts(void) {
    struct sigaction action = {.sa_handler = on_interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static bool was_interrupted(void) { return interrupted; }

static int add_message(conversation *c, const char *role, const char *text, size_t n_bytes, weir_error *err) {
    json_t *message = json_pack("{s:s, s:s%}", "role", role, "content", text, n_bytes);
    FAIL_IF(message == NULL, err, WEIR_E_INVALID, role, "the text is not UTF-8");
    FAIL_IF(json_array_append_new(c->messages, message) != 0, err, WEIR_E_NOMEM, role, "no memory for the conversation");
    return 0;
}

/* The text that the model continues. The caller frees it. */
static int render(conversation *c, const char *question, size_t n_question, char **text, size_t *n_bytes, weir_error *err) {
    *text = NULL;
    if (c->chat == NULL) {
        *text = strndup(question, n_question);
        *n_bytes = *text ? strlen(*text) : 0;
        FAIL_IF(*text == NULL, err, WEIR_E_NOMEM, "", "no memory for the prompt");
        return 0;
    }
    TRY(add_message(c, "user", question, n_question, err));
    json_t *variables = json_pack("{s:O, s:b}", "messages", c->messages, "add_generation_prompt", 1);
    char *json = variables ? json_dumps(variables, JSON_COMPACT) : NULL;
    int result = json ? weir_chat_render(c->chat, json, strlen(json), text, n_bytes, err)
                      : error_set(err, WEIR_E_NOMEM, "", "no memory for the conversation");
    free(json);
    json_decref(variables);
    return result;
}

/* Whether the template has written the BOS token already. */
static bool begins_with_bos(const conversation *c, const char *text, size_t n_bytes) {
    size_t n;
    int32_t bos = weir_token_bos(c->model);
    const char *bytes = bos < 0 ? NULL : weir_token_bytes(c->model, bos, true, &n);
    return bytes && n && n <= n_bytes && memcmp(text, bytes, n) == 0;
}

static int submit(conversation *c, const char *text, size_t n_bytes, weir_job **job, weir_error *err) {
    bool add_special = !(c->chat && begins_with_bos(c, text, n_bytes));
    int64_t n = weir_tokenize(c->model, text, n_bytes, add_special, true, NULL, 0);
    int32_t *tokens = n < 0 ? NULL : calloc((size_t)n + 1, sizeof *tokens);
    if (tokens) n = weir_tokenize(c->model, text, n_bytes, add_special, true, tokens, (size_t)n);
    if (tokens == NULL || n < 0) {
        free(tokens);
        FAIL(err, WEIR_E_NOMEM, "", "no memory for the prompt");
    }
    weir_request request;
    weir_request_init(&request);
    request.tokens = tokens;
    request.n_tokens = (size_t)n;
    request.max_tokens = (int32_t)c->s->predict;
    request.sampling = command_sampling(c->s);
    request.ignore_eos = c->s->ignore_eos;
    request.grammar = c->grammar;
    int result = weir_job_submit(c->engine, &request, job, err);
    free(tokens);
    return result;
}

/* Streams the answer to standard output and collects it. */
static int stream(weir_job *job, buf *answer, weir_error *err) {
    weir_event event = {0};
    for (;;) {
        if (interrupted) weir_job_cancel(job);
        if (weir_job_wait(job, &event, 50) == 0) continue;
        if (event.type != WEIR_EVENT_TOKEN) break;
        buf_append(answer, event.text, event.text_bytes);
        FAIL_IF(command_write(event.text, event.text_bytes) != EXIT_OK, err, WEIR_E_IO, "standard output", "cannot be written");
    }
    if (event.type == WEIR_EVENT_ERROR && event.code != WEIR_E_CANCELLED) FAIL(err, event.code, "", "%s", event.message);
    return 0;
}

static int answer_question(conversation *c, const char *question, size_t n_question, weir_error *err) {
    char *text = NULL;
    size_t n_bytes = 0;
    weir_job *job = NULL;
    buf answer = BUF_INIT;
    interrupted = 0;
    int result = render(c, question, n_question, &text, &n_bytes, err);
    if (result >= 0) result = submit(c, text, n_bytes, &job, err);
    if (result >= 0) result = stream(job, &answer, err);
    if (result >= 0) command_write("\n", 1);
    if (result >= 0 && c->chat) result = add_message(c, "assistant", answer.data ? answer.data : "", answer.n_bytes, err);
    weir_job_release(&job);
    buf_free(&answer);
    free(text);
    return result;
}

/* One question a line until the end of the input, /exit, or Ctrl-C at the prompt. */
static int chat_loop(conversation *c) {
    char *line = NULL;
    size_t capacity = 0;
    weir_error err = {0};
    fprintf(stderr, "Ctrl-C stops an answer; /exit or Ctrl-D ends the chat.\n");
    for (;;) {
        fputs("\n> ", stdout);
        fflush(stdout);
        interrupted = 0;
        ssize_t n = getline(&line, &capacity, stdin);
        if (n < 0) break;
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) n--;
        if (n == 0) continue;
        if (n == 5 && memcmp(line, "/exit", 5) == 0) break;
        if (answer_question(c, line, (size_t)n, &err) < 0) {
            command_failed(&err);
            if (err.code == WEIR_E_CONTEXT) break; /* no later question of this chat can fit */
            if (c->chat && json_array_size(c->messages)) json_array_remove(c->messages, json_array_size(c->messages) - 1);
        }
    }
    fputs("\n", stdout);
    free(line);
    return EXIT_OK;
}

static int open_chat(conversation *c, weir_error *err) {
    char *source = NULL;
    if (c->s->raw) return 0;
    TRY(command_chat_template(c->s, c->model, &source, err));
    char *bos = command_token_text(c->model, weir_token_bos(c->model)),
         *eos = command_token_text(c->model, weir_token_eos(c->model));
    int result = bos && eos ? weir_chat_open(&c->chat, source, bos, eos, err)
                            : error_set(err, WEIR_E_NOMEM, "", "no memory for the chat template");
    free(bos);
    free(eos);
    free(source);
    if (result >= 0 && c->s->system) result = add_message(c, "system", c->s->system, strlen(c->s->system), err);
    return result;
}

/* The question: --prompt, --file, the arguments, or what standard input holds unless it is a terminal. */
static int read_question(const settings *s, buf *out, bool *is_chat, weir_error *err) {
    *is_chat = false;
    if (s->prompt) {
        buf_puts(out, s->prompt);
    } else if (s->file) {
        TRY(command_read_file(s->file, out, err));
    } else if (s->n_arguments) {
        for (size_t i = 0; i < s->n_arguments; i++) buf_printf(out, "%s%s", i ? " " : "", s->arguments[i]);
    } else if (isatty(STDIN_FILENO)) {
        *is_chat = true;
        return 0;
    } else {
        TRY(command_read_file("-", out, err));
        while (out->n_bytes && out->data[out->n_bytes - 1] == '\n') out->data[--out->n_bytes] = '\0';
    }
    FAIL_IF(out->failed, err, WEIR_E_NOMEM, "", "no memory for the question");
    FAIL_IF(out->n_bytes == 0, err, WEIR_E_INVALID, "", "the question is empty");
    return 0;
}

/* --json-schema, --grammar and their files. */
static int open_grammar(conversation *c, weir_error *err) {
    const settings *s = c->s;
    const char *file = s->json_schema_file ? s->json_schema_file : s->grammar_file, *text = s->json_schema ? s->json_schema : s->grammar;
    bool schema = s->json_schema || s->json_schema_file;
    if (file == NULL && text == NULL) return 0;
    FAIL_IF(!!s->json_schema + !!s->json_schema_file + !!s->grammar + !!s->grammar_file > 1, err, WEIR_E_INVALID, "--grammar",
            "only one of --json-schema, --json-schema-file, --grammar and --grammar-file may be given");
    buf content = BUF_INIT;
    weir_grammars *grammars = NULL;
    int result = 0;
    if (file)
        result = command_read_file(file, &content, err);
    else
        buf_puts(&content, text);
    if (result >= 0) result = weir_grammars_open(&grammars, c->model, err);
    if (result >= 0)
        result = weir_grammar_open(&c->grammar, grammars, schema ? WEIR_GRAMMAR_JSON_SCHEMA : WEIR_GRAMMAR_GBNF,
                                   content.data ? content.data : "", content.n_bytes, err);
    weir_grammars_close(&grammars);
    buf_free(&content);
    return result;
}

int command_run(const settings *s) {
    if (s->model == NULL) return command_misused("run needs --model FILE");
    weir_sampling order = {0};
    int misused = command_sampler_order(s, &order);
    if (misused) return misused;
    conversation c = {.s = s, .messages = json_array()};
    weir_error err = {0};
    buf question = BUF_INIT;
    bool is_chat;
    int code = EXIT_FAILED;
    int result = read_question(s, &question, &is_chat, &err);
    if (result < 0) {
        command_failed(&err);
        goto done;
    }
    c.model = command_open_model(s, s->model, false);
    if (c.model == NULL) goto done;
    weir_engine_options options = command_engine_options(s);
    if (options.n_parallel == 0) options.n_parallel = 1;
    result = weir_engine_open(&c.engine, c.model, &options, &err);
    if (result >= 0) result = open_chat(&c, &err);
    if (result >= 0) result = open_grammar(&c, &err);
    if (result >= 0) {
        catch_interrupts();
        if (is_chat) {
            code = chat_loop(&c);
        } else {
            result = answer_question(&c, question.data, question.n_bytes, &err);
            if (result >= 0) code = interrupted ? 130 : EXIT_OK;
        }
    }
    if (result < 0) command_failed(&err);
    else if (!interrupted) command_save_weights(s, c.model, was_interrupted);
done:
    buf_free(&question);
    json_decref(c.messages);
    weir_grammar_close(&c.grammar);
    weir_chat_close(&c.chat);
    weir_engine_close(&c.engine);
    weir_model_close(&c.model);
    return code;
}
