#include <stddef.h>
#include <stdint.h>

#include "base/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct err e = {0};
    json_t *root = NULL;
    if (base_json_parse("fuzz", (const char *)data, bytes, &root, &e) != ST_OK) return 0;
    static const char *const keys[] = {"hidden_size", "rope_theta", "tie", "name", "list"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        int64_t integer;
        double number;
        bool flag;
        const char *text;
        base_json_i64(root, "fuzz", keys[i], 1, 1 << 20, &integer, &e);
        base_json_f64(root, "fuzz", keys[i], &number, &e);
        base_json_bool(root, "fuzz", keys[i], &flag, &e);
        base_json_str(root, "fuzz", keys[i], &text, &e);
    }
    json_decref(root);
    return 0;
}
