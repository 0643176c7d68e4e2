/* What convert.c asks of its two neighbours: patterns and names (convert_names.c), what describes the result (convert_config.c). */
#ifndef PARTITION_CONVERT_PRIV_H
#define PARTITION_CONVERT_PRIV_H

#include "partition/convert.h"

struct convert_ignore;
enum st convert_ignore_create(const char *const *patterns, int n, struct convert_ignore **list, struct err *e);
/* Marks the patterns that match; names may be NULL. */
bool convert_ignore_matches(struct convert_ignore *list, const char *const *names, int n_names);
/* ST_NOT_FOUND names the first pattern that never matched. */
enum st convert_ignore_check(const struct convert_ignore *list, const char *where, struct err *e);
void convert_ignore_destroy(struct convert_ignore *list);

enum convert_kind { CONVERT_LINEAR, CONVERT_HEAD, CONVERT_OTHER };
enum convert_kind convert_kind_of(const struct checkpoint *ck, const struct ck_tensor *t);

/* The other side's name of a Llama tensor, in the arena; NULL: it has none. *heads: 0, or how many heads of rows change places. */
const char *convert_rename(struct arena *arena, const struct model_config *c, const char *name, bool to_gguf, int *heads);

/* config.json of the result as text, malloc'ed; ignored: modules that stay as they are. dtype: of what is not encoded. */
enum st convert_config_text(const struct checkpoint *ck, const struct convert_plan *p, const char *const *ignored, size_t n_ignored, const char *dtype, char **text, struct err *e);
/* Keys of a GGUF: the source's own but for those that change, or a Llama's made from its config. */
enum st convert_gguf_keys(const struct checkpoint *ck, struct convert_plan *p, struct err *e);

#endif
