#include "comm/mpi_api.h"

#if COMM_HAVE_MPI

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FINALIZE_WAIT_NS (2 * BASE_NS_PER_S)
#define N_SIGNALS 65 /* 1 … 64 */

enum life {
    NOT_STARTED,
    RUNNING,
    ENDED,    /* finalised */
    GIVEN_UP, /* not finalised, and not to be called again */
};

static struct comm_mpi_api api;
static bool is_loaded;
static enum life life;
static int n_users;
static bool is_ours;  /* we called MPI_Init */
static bool is_stuck; /* a call of ours does not return */
static bool is_angry; /* somebody did not end in peace: MPI_Finalize would wait for a rank that does not come */

/* ---- loading ------------------------------------------------------------------------------------------------------------------------------------------------ */

static void set_environment(void) {
    static const char *const defaults[][2] = {
        {"UCX_ERROR_SIGNALS", ""},  /* else it handles SIGSEGV and others, with a debugger's prompt */
        {"UCX_LOG_FILE", "stderr"}, /* else it logs to stdout */
        {"UCX_WARN_UNUSED_ENV_VARS", "n"},
#ifdef __SANITIZE_THREAD__
        {"UCX_MEM_EVENTS", "n"}, /* it patches mmap, and so does the sanitizer */
#endif
    };
    for (size_t i = 0; i < sizeof defaults / sizeof *defaults; i++) setenv(defaults[i][0], defaults[i][1], 0);
}

/* "MPICH Version:\t4.0.2\n…" */
static void read_version(void) {
    static char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int n = 0;
    strcpy(api.version, "MPICH");
    if (api.Get_library_version(text, &n) != MPI_SUCCESS) return;
    const char *at = strstr(text, "MPICH Version:");
    if (!at) return;
    at += strlen("MPICH Version:");
    at += strspn(at, " \t");
    size_t n_at = strcspn(at, " \t\n");
    if (n_at > sizeof api.version - 7) n_at = sizeof api.version - 7;
    api.version[5] = ' ';
    memcpy(api.version + 6, at, n_at);
    api.version[6 + n_at] = 0;
}

const struct comm_mpi_api *comm_mpi_load(struct err *e) {
    if (is_loaded) return &api;
    static const char *const names[] = {"libmpich.so.12", "libmpi.so.12"};
    set_environment();
    void *library = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !library; i++) library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        (void)dlopen(names[0], RTLD_NOW | RTLD_LOCAL); /* for its message */
        const char *why = dlerror();
        err_set(e, ST_UNSUPPORTED, "%.200s", why ? why : "libmpich.so.12 cannot be loaded");
        return NULL;
    }
    const char *missing = NULL;
#define FIND(name)                                                                                                                                   \
    {                                                                                                                                                \
        void *found = dlsym(library, "MPI_" #name);                                                                                                  \
        if (!found) missing = "MPI_" #name;                                                                                                          \
        memcpy(&api.name, &found, sizeof found);                                                                                                     \
    }
    COMM_MPI_CALLS(FIND)
#undef FIND
    if (missing) {
        err_set(e, ST_UNSUPPORTED, "MPICH's library has no %s", missing);
        return NULL; /* stays loaded: UCX below it cannot be unloaded safely */
    }
    read_version();
    is_loaded = true;
    return &api;
}

/* ---- calls with a deadline ---------------------------------------------------------------------------------------------------------------------------------- */

struct job {
    int (*run)(struct job *j);
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool is_over;
    int result; /* of MPI */
    /* arguments and results */
    MPI_Comm made;
    int n_ranks, tag;
    int world_ranks[COMM_MAX_RANKS];
};

static void *run_job(void *arg) {
    struct job *j = arg;
    int result = j->run(j);
    pthread_mutex_lock(&j->lock);
    j->result = result;
    j->is_over = true;
    pthread_cond_signal(&j->ended);
    pthread_mutex_unlock(&j->lock);
    return NULL;
}

/* ST_OK: it ran, see result. Else j is not ours any more. */
static enum st run_bounded(struct job *j, const char *name, uint64_t deadline_ns, struct err *e) {
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->ended, NULL);
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* for the thread, and for those that UCX starts from it */
    int failed = pthread_create(&thread, NULL, run_job, j);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        free(j);
        return err_set(e, ST_NO_MEMORY, "mpi: no thread: %s", strerror(failed));
    }
    const struct timespec until = {.tv_sec = (time_t)(deadline_ns / BASE_NS_PER_S > INT32_MAX ? INT32_MAX : deadline_ns / BASE_NS_PER_S),
                                   .tv_nsec = (long)(deadline_ns % BASE_NS_PER_S)};
    pthread_mutex_lock(&j->lock);
    while (!j->is_over && pthread_cond_clockwait(&j->ended, &j->lock, CLOCK_MONOTONIC, &until) == 0) continue;
    bool is_over = j->is_over;
    pthread_mutex_unlock(&j->lock);
    if (!is_over) {
        pthread_detach(thread);
        life = GIVEN_UP;
        is_stuck = true;
        return err_set(e, ST_TIMEOUT, "mpi: %s did not return in time: some rank has not called it, or its messages do not arrive", name);
    }
    pthread_join(thread, NULL);
    return ST_OK;
}

enum st comm_mpi_check(int result, const char *name, struct err *e) {
    if (result == MPI_SUCCESS) return ST_OK;
    char text[MPI_MAX_ERROR_STRING + 1] = "";
    int n = 0, class = MPI_ERR_OTHER;
    api.Error_class(result, &class);
    api.Error_string(result, text, &n);
    for (char *at = text; *at; at++)
        if (*at == '\n') *at = ';';
    return err_set(e, class == MPI_ERR_TRUNCATE ? ST_MISMATCH : ST_PEER_LOST, "mpi: %s: %.300s", name, text);
}

/* ---- the one MPI -------------------------------------------------------------------------------------------------------------------------------------------- */

/* MPICH takes SIGUSR1 for itself (Hydra's -disable-auto-cleanup tells deaths by it): the handlers stay the program's. */
static int do_init(struct job *j) {
    struct sigaction before[N_SIGNALS], now;
    bool known[N_SIGNALS] = {false};
    for (int s = 1; s < N_SIGNALS; s++) known[s] = sigaction(s, NULL, &before[s]) == 0;
    int provided = MPI_THREAD_SINGLE;
    int result = api.Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided);
    for (int s = 1; s < N_SIGNALS; s++)
        if (known[s] && sigaction(s, NULL, &now) == 0 && now.sa_handler != before[s].sa_handler) sigaction(s, &before[s], NULL);
    j->tag = provided;
    return result;
}

static int do_finalize(struct job *j) {
    (void)j;
    return api.Finalize();
}

static int do_make_comm(struct job *j) {
    MPI_Group world, members;
    int result = api.Comm_group(MPI_COMM_WORLD, &world);
    if (result != MPI_SUCCESS) return result;
    result = api.Group_incl(world, j->n_ranks, j->world_ranks, &members);
    if (result == MPI_SUCCESS) {
        result = api.Comm_create_group(MPI_COMM_WORLD, members, j->tag, &j->made);
        api.Group_free(&members);
    }
    api.Group_free(&world);
    return result;
}

bool comm_mpi_is_running(void) { return life == RUNNING; }
int comm_mpi_n_users(void) { return n_users; }
bool comm_mpi_is_stuck(void) { return is_stuck; }

static enum st start(uint64_t deadline_ns, struct err *e) {
    int already = 0, over = 0;
    if (!comm_mpi_load(e)) return ST_UNSUPPORTED;
    if (api.Initialized(&already) != MPI_SUCCESS || api.Finalized(&over) != MPI_SUCCESS)
        return err_set(e, ST_UNSUPPORTED, "mpi: MPI_Initialized fails");
    if (over) return err_set(e, ST_UNSUPPORTED, "mpi: MPI was finalised in this process; it can be started once");
    if (!already) {
        struct job *j = calloc(1, sizeof *j);
        if (!j) return err_set(e, ST_NO_MEMORY, "mpi: no memory");
        j->run = do_init;
        enum st code = run_bounded(j, "MPI_Init", deadline_ns, e);
        if (code != ST_OK) return code;
        code = comm_mpi_check(j->result, "MPI_Init", e);
        int provided = j->tag;
        free(j);
        if (code == ST_OK && provided < MPI_THREAD_SERIALIZED)
            code = err_set(e, ST_UNSUPPORTED, "mpi: this MPICH knows no threads (level %d)", provided);
        if (code != ST_OK) {
            life = GIVEN_UP;
            return code;
        }
    }
    is_ours = !already;
    life = RUNNING;
    return comm_mpi_check(api.Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", e);
}

enum st comm_mpi_acquire(uint64_t deadline_ns, struct err *e) {
    if (life == ENDED) return err_set(e, ST_UNSUPPORTED, "mpi: MPI was finalised in this process; it can be started once");
    if (life == GIVEN_UP) return err_set(e, ST_UNSUPPORTED, "mpi: MPI was given up in this process; it can be started once");
    if (life == NOT_STARTED) {
        enum st code = start(deadline_ns, e);
        if (code != ST_OK) return code;
    }
    n_users++;
    return ST_OK;
}

void comm_mpi_release(bool in_peace) {
    BASE_ASSERT(n_users > 0);
    n_users--;
    if (!in_peace) is_angry = true;
    if (n_users || life != RUNNING || !is_ours) return;
    if (is_angry) {
        life = GIVEN_UP;
        return;
    }
    struct job *j = calloc(1, sizeof *j);
    if (!j) return;
    j->run = do_finalize;
    struct err ignored;
    if (run_bounded(j, "MPI_Finalize", base_now_ns(base_clock_real()) + FINALIZE_WAIT_NS, &ignored) != ST_OK) return;
    free(j);
    life = ENDED;
}

enum st comm_mpi_make_comm(const int *world_ranks, int n_ranks, int tag, uint64_t deadline_ns, MPI_Comm *made, struct err *e) {
    struct job *j = calloc(1, sizeof *j);
    if (!j) return err_set(e, ST_NO_MEMORY, "mpi: no memory");
    j->run = do_make_comm;
    j->n_ranks = n_ranks;
    j->tag = tag;
    memcpy(j->world_ranks, world_ranks, (size_t)n_ranks * sizeof *world_ranks);
    enum st code = run_bounded(j, "MPI_Comm_create_group", deadline_ns, e);
    if (code != ST_OK) return code;
    code = comm_mpi_check(j->result, "MPI_Comm_create_group", e);
    MPI_Comm comm = j->made;
    free(j);
    if (code == ST_OK) code = comm_mpi_check(api.Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", e);
    if (code == ST_OK) *made = comm;
    return code;
}

#else
typedef int comm_mpi_api_is_empty;
#endif
