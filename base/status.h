/* Status codes and error records: how every function of Tandem says what went wrong.
 *
 * A function that can fail returns enum st. Outputs are written on success only. Whoever first knows what went wrong
 * fills the struct err (if it was given one) or logs; callers pass the code on and add nothing.
 * Codes are grouped by what a caller has to rebuild: the call, a resource, a peer, the process. */
#ifndef BASE_STATUS_H
#define BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

enum st {
    ST_OK = 0,
    ST_AGAIN, /* nothing happened, call again */

    /* the call was wrong or its input is: change it */
    ST_INVALID,     /* malformed or contradictory input */
    ST_UNSUPPORTED, /* well-formed, but of a kind that this build or model does not know; named in the error */
    ST_NOT_FOUND,   /* a file, tensor, key or host that is not there */

    /* a resource: free some, or ask for less */
    ST_NO_MEMORY, /* the plan does not fit, or an allocation failed */
    ST_IO,        /* the operating system refused a read, write, open or map */

    /* a peer: the connection is gone, the process may go on */
    ST_PEER_LOST, /* a peer died or closed its end */
    ST_TIMEOUT,   /* a deadline passed; the error names peer, step and sequence number */
    ST_MISMATCH,  /* peers disagree (hello, token hash) */

    /* the process: it must be started again */
    ST_DEVICE_LOST,
    ST_CANCELLED, /* somebody asked us to stop */
    ST_COUNT
};

/* A sentence for the person in front: "file:offset: what is wrong". Caller's storage, zeroed before use. */
struct err {
    char text[512];
};

/* Short stable name ("invalid", "peer lost"), never NULL. */
const char *st_name(enum st code);

/* Writes the sentence (truncated to fit) unless e is NULL, and returns code, so that `return err_set(e, ST_INVALID, …)` reads well. */
enum st err_set(struct err *e, enum st code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the text that is already there. Returns code. */
enum st err_prefix(struct err *e, enum st code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Our own bug: prints file, line and sentence to stderr and aborts. Stays on in release builds. */
#define BASE_ASSERT(cond) ((cond) ? (void)0 : base_assert_failed(__FILE__, __LINE__, #cond))
void base_assert_failed(const char *file, int line, const char *condition) __attribute__((noreturn));

#ifdef __cplusplus
}
#endif
#endif
