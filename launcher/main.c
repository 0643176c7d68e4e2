/* The command line: a table of commands, and what all of them share. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/build_id.h"
#include "base/log.h"
#include "launcher/agent.h"
#include "launcher/commands.h"
#include "launcher/interrupt.h"

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about; /* NULL: hidden */
};

static const struct command commands[] = {
    {"run", cmd_run, "answer a prompt, or chat"},
    {"eval", cmd_eval, "perplexity of a text, logits of token ids"},
    {"bench", cmd_bench, "tokens per second"},
    {"tokenize", cmd_tokenize, "text to token ids and back"},
    {"quantize", cmd_quantize, "a checkpoint's matrices in NVFP4, MXFP4, FP8 or Q8_0"},
    {"synth", cmd_synth, "a checkpoint of a known model's shape, made up"},
    {"inspect", cmd_inspect, "what a checkpoint holds, and what each rank would hold"},
    {"plan", cmd_plan, "does a model fit on machines that are described, and where do the bytes go"},
    {"topo", cmd_topo, "this machine, and which rank would sit where"},
    {"agent", cmd_agent, NULL},
    {"rank", cmd_rank, NULL},
    {"host-check", cmd_host_check, NULL},
    {"host-kill", cmd_host_kill, NULL},
    {"host-info", cmd_host_info, NULL},
    {"bundle-check", cmd_bundle_check, NULL},
    {"bundle-make", cmd_bundle_make, NULL},
};

static void print_help(FILE *out)
{
    fputs("usage: tandem COMMAND [OPTIONS] [MODEL]\n\nOne large language model on one box or several, the same bits on each.\n\n", out);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (commands[i].about)
            fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].about);
    fputs("\nMODEL is a Hugging Face directory, a GGUF file, or a hub name found in the local cache.\n'tandem help COMMAND' tells a command's options.\n", out);
}

static const struct command *find(const char *name)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

/* A caller may have closed 0, 1 or 2: without this, a file that we open would become our stdout. Reading and writing these fails, as it should. */
static void occupy_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
            (void)!open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

static int done(const char *command)
{
    struct err e = {""};
    return launch_flush_stdout(&e) ? launch_fail(command, &e) : 0;
}

int main(int argc, char **argv)
{
    occupy_standard_descriptors();
    signal(SIGCHLD, SIG_DFL); /* ignored by some callers, which exec keeps: then nobody would hear of a child's death */
    base_log_init(NULL);
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    const char *name = argv[1];
    if (strcmp(name, "--version") == 0) {
        printf("tandem %s (build %.12s)\n", tandem_version, tandem_build_id);
        return done("--version");
    }
    const bool help = strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0;
    if (help && argc < 3) {
        print_help(stdout);
        return done("help");
    }
    const struct command *c = find(help ? argv[2] : name);
    if (!c) {
        fprintf(stderr, "tandem: there is no command %s; try 'tandem help'\n", help ? argv[2] : name);
        return 2;
    }
    if (help) {
        char *ask[] = {argv[2], "--help", NULL};
        return c->run(2, ask);
    }
    const int status = c->run(argc - 1, argv + 1);
    launch_interrupt_settle();
    return status;
}
