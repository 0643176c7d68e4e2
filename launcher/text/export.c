#include "launcher/text/export.h"
enum st tok_export_gguf(const struct checkpoint *ck, int64_t n_vocab, struct gguf_head *head, struct err *e) { (void)ck; (void)n_vocab; (void)head; return err_set(e, ST_UNSUPPORTED, "later"); }
enum st tok_export_json(const struct checkpoint *ck, char **tokenizer, char **config, struct err *e) { (void)ck; (void)tokenizer; (void)config; return err_set(e, ST_UNSUPPORTED, "later"); }
