/* A model and a chat template for tests of the OpenAI surface. Tokens are bytes: id 0 "<unk>", 1 "<s>" (BOS, added), 2 "</s>"
 * (EOS), and 3 + b for byte b. The "template" shows each message as role:content and then "assistant:" when asked for. */
#ifndef TEST_OPENAI_FAKE_H
#define TEST_OPENAI_FAKE_H

#include "weir/weir.h"

enum { FAKE_BOS = 1, FAKE_EOS = 2, FAKE_BYTE = 3, FAKE_N_VOCAB = 259 };

typedef enum fake_template {
    FAKE_TEMPLATE_TEXT,   /* prints content as a string; a list is shown as JSON */
    FAKE_TEMPLATE_EITHER, /* prints strings and the texts of lists */
    FAKE_TEMPLATE_PARTS,  /* prints the texts of lists only */
    FAKE_TEMPLATE_RAISES, /* raises an exception when a message's content is "raise" */
} fake_template;

/* The handles below are static and need no closing. */
const weir_model *fake_model(void);
const weir_chat *fake_chat(fake_template mode);
void fake_set_chat_template(const char *source); /* what weir_model_get_info reports */

/* Jobs play scripts, each event a string: "t:TEXT" a token, "end:eos", "end:length", "end:stop", "error:MESSAGE" (E_INTERNAL,
 * but E_CANCELLED for "cancelled"),
 * "-" nothing yet for one poll. Job k of those submitted after fake_set_scripts plays scripts[k % n]; tokens count 1 each. */
void fake_set_scripts(const char *const *const *scripts, size_t n);
/* The next submissions fail with this code; 0 = none. */
void fake_refuse_jobs(int code);
/* Refuse only from the k-th submission on (0 = the first). */
void fake_refuse_from(int k);
int fake_jobs_alive(void);     /* submitted and not released */
int fake_jobs_submitted(void); /* since fake_set_scripts */
uint64_t fake_job_seed(int k); /* of the k-th of them */

int fake_n_tokenized(void); /* calls of weir_tokenize so far */
/* The JSON that the last weir_chat_render got. */
const char *fake_last_variables(void);

#endif
