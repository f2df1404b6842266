/* Runs a fuzz target on the files of folders, without a fuzzer: `TARGET_replay FOLDER...`. A crash or a failed promise ends it.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_file(const char *path) {
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (f == NULL || fstat(fileno(f), &st) != 0) {
        perror(path);
        if (f) fclose(f);
        return -1;
    }
    size_t n_bytes = (size_t)st.st_size;
    uint8_t *data = malloc(n_bytes ? n_bytes : 1); /* of exactly this size, so that a sanitizer sees reads beyond it */
    int rc = data && fread(data, 1, n_bytes, f) == n_bytes ? 0 : -1;
    fclose(f);
    if (rc == 0) {
        LLVMFuzzerTestOneInput(data, n_bytes);
    } else {
        fprintf(stderr, "%s: cannot be read\n", path);
    }
    free(data);
    return rc;
}

/* Returns how many files were run, or -1. */
static int run_folder(const char *folder) {
    DIR *dir = opendir(folder);
    if (dir == NULL) {
        perror(folder);
        return -1;
    }
    int n = 0;
    for (struct dirent *entry; n >= 0 && (entry = readdir(dir)) != NULL;) {
        char path[4096];
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        n = run_file(path) == 0 ? n + 1 : -1;
    }
    closedir(dir);
    return n;
}

int main(int argc, char **argv) {
    int total = 0;
    for (int i = 1; i < argc; i++) {
        int n = run_folder(argv[i]);
        if (n < 0) return 1;
        total += n;
    }
    printf("%d inputs\n", total);
    return total > 0 ? 0 : 1; /* an empty corpus proves nothing */
}
