/* Published chat templates: kit/chat_template, a file of cases for each template. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kit_jinja.h"

static void run_line(kit_report *r, const char *dir, const char *line) {
    json_error_t e;
    json_t *item = json_loads(line, 0, &e);
    const char *name = json_string_value(json_object_get(item, "template"));
    const char *context = json_string_value(json_object_get(item, "context"));
    char title[300];
    size_t n;
    if (name == NULL) {
        kit_fail(r, "a line is no case: %s", e.text);
        json_decref(item);
        return;
    }
    char *source = kit_read_file(kit_path(dir, "templates/%s.jinja", name), &n);
    if (source == NULL) source = kit_read_file(kit_path(dir, "templates/%s", name), &n);
    snprintf(title, sizeof title, "%s/%s", name, context ? context : "?");
    if (source)
        kit_jinja_case(r, title, source, n, item);
    else
        kit_fail(r, "%s: its template cannot be read", title);
    free(source);
    json_decref(item);
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

void kit_run_chat_template(kit_report *r, const char *dir) {
    struct dirent **entries;
    int count = scandir(kit_path(dir, "cases"), &entries, NULL, by_name);
    for (int i = 0; i < count; i++) {
        size_t n;
        char *save = NULL, *data = NULL;
        if (strstr(entries[i]->d_name, ".jsonl")) data = kit_read_file(kit_path(dir, "cases/%s", entries[i]->d_name), &n);
        for (char *line = data ? strtok_r(data, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save))
            run_line(r, dir, line);
        free(data);
        free(entries[i]);
    }
    kit_jinja_times(r);
    if (count >= 0)
        free(entries);
    else
        kit_fail(r, "there is no folder of cases");
}
