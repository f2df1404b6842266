/* The program: finds the command that is asked for and runs it. Invoked through a name that begins with llm-worker-rbee it is
 * that worker. Owns the process: signals that must not kill it, standard streams, the exit code. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/tables.h"

static int show(buf *text) {
    int result = text->failed ? EXIT_FAILED : command_write(text->data, text->n_bytes);
    buf_free(text);
    return result;
}

static int run_command(const command *c, const char *program, int argc, char **argv) {
    static settings s;
    weir_error err = {0};
    int result = options_parse(c, argc, argv, &s, &err);
    if (result == 1) {
        buf help = BUF_INIT;
        options_help(c, program, &help);
        return show(&help);
    }
    if (result < 0) {
        fprintf(stderr, "Error: %s%s%s\n\nUsage: %s [OPTION...]%s%s\n%s --help tells more.\n", err.place,
                err.place[0] ? ": " : "", err.message, program, c->arguments ? " " : "", c->arguments ? c->arguments : "",
                program);
        return EXIT_USAGE;
    }
    return c->run(&s);
}

static int run_worker(const char *name, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--build-info") != 0) continue;
#ifdef NDEBUG
        return command_write("release\n", 8);
#else
        return command_write("debug\n", 6);
#endif
    }
    const char *variant = name + strlen("llm-worker-rbee");
    bool is_variant = strcmp(variant, "-cpu") == 0 || strcmp(variant, "-cuda") == 0 || strcmp(variant, "-metal") == 0;
    return run_command(is_variant ? &tables_worker_variant : &tables_worker, name, argc - 1, argv + 1);
}

static int show_commands(void) {
    buf text = BUF_INIT;
    buf_puts(&text, "Usage: weir COMMAND [OPTION...]\n\nAn LLM worker: one model, served over HTTP, each token streamed as it "
                    "is made.\n\n");
    for (size_t i = 0; i < tables_n_commands; i++) {
        buf_printf(&text, "  %-12s %s\n", tables_commands[i].name, tables_commands[i].summary);
    }
    buf_puts(&text, "\nweir COMMAND --help tells more; weir --version names the version.\n");
    return show(&text);
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    log_setup(STDERR_FILENO, false, LOG_WARN); /* the servers set it up anew */
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *name = slash ? slash + 1 : argc > 0 ? argv[0] : "weir";
    if (strncmp(name, "llm-worker-rbee", strlen("llm-worker-rbee")) == 0) return run_worker(name, argc, argv);
    if (argc < 2) {
        show_commands();
        return EXIT_USAGE;
    }
    const char *word = argv[1];
    if (strcmp(word, "--version") == 0) return command_write("weir " WEIR_VERSION "\n", strlen("weir " WEIR_VERSION "\n"));
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) return show_commands();
    const char *names[32];
    for (size_t i = 0; i < tables_n_commands; i++) {
        names[i] = tables_commands[i].name;
        if (strcmp(word, names[i]) != 0) continue;
        char program[64];
        snprintf(program, sizeof program, "weir %s", names[i]);
        return run_command(&tables_commands[i], program, argc - 2, argv + 2);
    }
    const char *nearest = options_nearest(word, names, tables_n_commands);
    fprintf(stderr, "Error: unknown command %s%s%s%s\n\nweir --help lists the commands.\n", word,
            nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
    return EXIT_USAGE;
}
