/* A model and a chat template for tests of the OpenAI surface. Tokens are bytes: id 0 "<unk>", 1 "<s>" (BOS, added), 2 "</s>" (EOS),
 * and 3 + b for byte b. The "template" shows each message as role:content and then "assistant:" when asked for. */
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
/* The JSON that the last weir_chat_render got. */
const char *fake_last_variables(void);

#endif
