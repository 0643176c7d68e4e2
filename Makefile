# Tandem's build: plain GNU make, no generator. `make help` lists the targets.
#
# Everything is built below $(BUILD). Sources are found by wildcard, so a new file needs no line here. All of the rooms except
# launcher/main.c go into one static library, with which the binary, tests, fuzzers and benchmarks are linked.
# Nothing may ask the compiler's packages anything while this file is read: `make demo` installs them first and then calls make again.

VERSION := 0.1.0
PREFIX  ?= /usr/local

MAKEFLAGS += -r
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all
FORCE:

comma := ,
# ARCH=aarch64: everything for Arm (DGX Spark), by a cross compiler, with libraries that `make deps` unpacks into a folder.
CROSS := $(filter-out $(shell uname -m),$(ARCH))
BUILD := build$(if $(CROSS),-$(CROSS))$(if $(SAN),-$(subst $(comma),-,$(SAN)))
OBJ   := $(BUILD)/obj
Q     := $(if $(V),,@)

ifneq ($(filter default undefined,$(origin CC)),)
CC := gcc
endif
ifneq ($(filter default undefined,$(origin AR)),)
AR := ar
endif
ifdef CROSS
SYSROOT := $(abspath build-$(CROSS)/sysroot)
CC := $(CROSS)-linux-gnu-gcc --sysroot=$(SYSROOT)
AR := $(CROSS)-linux-gnu-ar
export PKG_CONFIG_SYSROOT_DIR := $(SYSROOT)
export PKG_CONFIG_LIBDIR := $(SYSROOT)/usr/lib/$(CROSS)-linux-gnu/pkgconfig:$(SYSROOT)/usr/share/pkgconfig
endif
CXX := $(if $(filter default undefined,$(origin CXX)),g++,$(CXX))
MACHINE := $(or $(shell $(CC) -dumpmachine 2>/dev/null),$(shell uname -m))

# Parallel by default; a job server of a make above us is used as it is.
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif

# --- Sources ---------------------------------------------------------------------------------------------------------------

# ONLY="base kernels" restricts the library to these rooms, for work on one room while another does not compile.
SOURCE_DIRS := base topologies kernels kernels/ref kernels/cpu comm partition partition/models runtime launcher launcher/text
ifdef ONLY
SOURCE_DIRS := $(foreach room,$(ONLY),$(filter $(room) $(room)/%,$(SOURCE_DIRS)))
endif
# The tests of comm start a PMI server for the ranks of MPICH.
SOURCES := $(sort $(wildcard $(addsuffix /*.c,$(SOURCE_DIRS))) $(if $(filter comm,$(ONLY)),launcher/pmi.c))
HEADERS := $(sort $(wildcard $(addsuffix /*.h,$(SOURCE_DIRS))))
ALL_SOURCES := $(SOURCES) # of any processor
ifeq ($(filter x86_64%,$(MACHINE)),)
SOURCES := $(filter-out kernels/cpu/%_avx2.c kernels/cpu/%_avx512.c,$(SOURCES))
endif
LIB_SOURCES   := $(filter-out launcher/main.c,$(SOURCES))
# T='base_% comm_%': only tests of these names.
T := %
TEST_SOURCES  := $(filter $(T:%=tests/%.c),$(sort $(wildcard tests/*_test.c)))
TEST_SCRIPTS  := $(filter $(T:%=tests/%.sh),$(sort $(wildcard tests/*_test.sh)))
# The harness for CUDA kernels moves stacks under the feet of sanitizers, and is C++, for which there is no cross compiler here.
ifneq ($(SAN)$(CROSS),)
TEST_SOURCES  := $(filter-out tests/%_simt_test.c,$(TEST_SOURCES))
endif
# Programs that test scripts call.
TEST_TOOLS    := $(BUILD)/tests/compare_logits
# Helpers for tests: tests/t.c and, where a room needs some of its own, tests/t_*.c
T_SOURCES     := tests/t.c $(if $(ONLY),,$(sort $(filter-out %_test.c,$(wildcard tests/t_*.c))))
FUZZ_SOURCES  := $(sort $(wildcard tests/fuzz/*_fuzz.c))
BENCH_SOURCES := $(filter-out $(if $(SAN)$(CROSS),bench/simt.c),$(sort $(wildcard bench/*.c)))
# The comparison with MPI is built where MPICH is; asked only when benchmarks are wanted.
ifneq ($(filter bench _bench benches,$(MAKECMDGOALS)),)
ifneq ($(shell pkg-config --exists mpich && echo yes),yes)
BENCH_SOURCES := $(filter-out bench/%_mpi.c,$(BENCH_SOURCES))
endif
endif
# CUDA kernels: by nvcc for a GPU (`make cuda`), by g++ for the harness that runs them here (docs/simt.md).
SIMT_SOURCES  := $(sort $(wildcard kernels/simt/*.cpp))
SIMT_HEADERS  := $(sort $(wildcard kernels/simt/*.h))
CUDA_SOURCES  := $(sort $(wildcard kernels/cuda/*.cu))
SIMT_CASES    := $(sort $(filter-out tests/simt/on_device.cu,$(wildcard tests/simt/*.cu)))
SCRIPTS       := $(sort $(wildcard .ci/run tests/*.sh tests/rdma/*.sh bench/*.sh launcher/*.sh))

LIB    := $(BUILD)/libtandem.a
LIBT   := $(BUILD)/libt.a
LIBSIMT := $(BUILD)/libsimt.a
BINARY := $(if $(filter launcher/main.c,$(SOURCES)),$(BUILD)/tandem)
# What --device simt opens; not under sanitizers, which do not know its stacks, nor where there is no C++.
PLUGINS := $(if $(SAN)$(CROSS)$(ONLY),,$(if $(shell command -v $(lastword $(CXX)) 2>/dev/null),$(BUILD)/libtandem-simt.so))

TESTS  := $(TEST_SOURCES:tests/%.c=$(BUILD)/tests/%)
FUZZES := $(FUZZ_SOURCES:tests/fuzz/%.c=$(BUILD)/fuzz/%)
BENCHES := $(patsubst %.c,$(BUILD)/%,$(filter-out bench/cuda_kernels.c,$(BENCH_SOURCES)))

# --- Flags -----------------------------------------------------------------------------------------------------------------

# -ffp-contract=off: a compiler may not fuse a multiplication and an addition on its own; the bits would depend on its mood.
WARNINGS := -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef
COMMON   := -std=c17 -g -ffp-contract=off $(WARNINGS) $(if $(DEV),-Werror) -D_GNU_SOURCE -I. -pthread
OPT      := -O2
OPT_KERN := -O3
ifdef SAN
OPT      := -O1
OPT_KERN := -O1
COMMON   += -fsanitize=$(SAN) -fno-omit-frame-pointer $(if $(findstring undefined,$(SAN)),-fno-sanitize-recover=undefined)
endif
AVX2     := -mavx2 -mfma -mf16c
AVX512   := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni $(AVX2)
# The vector kernels are long straight functions of inlined one-liners, and most of every build. -g1 (functions and lines) takes a third off: no debugger finds
# much of their locals anyway. With -fsanitize=address they take a fifth of the time without what that finds by itself (null, objects' sizes, pointers
# that wrap: each shows when it is followed), without scopes of values whose address nobody keeps, and with a register allocator that takes a function as
# one region. Checks by calls (asan-instrumentation-with-call-threshold) would compile twice as fast, but then same_bits_test takes 40 s more.
VECTOR_FILES := kernels/cpu/%_avx2.c kernels/cpu/%_avx512.c kernels/cpu/%_portable.c
VECTOR   := -g1
ifneq ($(findstring address,$(SAN)),)
VECTOR   += -fno-sanitize=null,object-size,pointer-overflow -fno-sanitize-address-use-after-scope $(if $(findstring clang,$(CC)),,-fira-region=one)
endif

PACKAGES := hwloc jansson libxxhash libsodium libpcre2-8
# Asked once, when the first recipe needs it.
PKG_CFLAGS   = $(eval PKG_CFLAGS := $$(shell pkg-config --cflags $(PACKAGES)))$(PKG_CFLAGS)
PKG_LIBS     = $(eval PKG_LIBS := $$(shell pkg-config --libs $(PACKAGES)))$(PKG_LIBS)
CMOCKA_FLAGS = $(eval CMOCKA_FLAGS := $$(shell pkg-config --cflags cmocka))$(CMOCKA_FLAGS)
CMOCKA_LIBS  = $(eval CMOCKA_LIBS := $$(shell pkg-config --libs cmocka))$(CMOCKA_LIBS)
MPI_FLAGS    = $(eval MPI_FLAGS := $$(shell pkg-config --cflags mpich 2>/dev/null))$(MPI_FLAGS)
MPI_LIBS     = $(eval MPI_LIBS := $$(shell pkg-config --libs mpich))$(MPI_LIBS)

# -O1 -g1: half the compiler's time, and the tests of the harness take few seconds. Emulated matrix instructions are most of theirs.
CXX_FLAGS := -std=c++17 -fPIC -g1 -O1 -ffp-contract=off -Wall -Wextra -Wshadow $(if $(DEV),-Werror) -I. -pthread

# Of a .cu; $(call compile_cu,pattern|zero): with what its locals begin (see ZERO).
CU_FLAGS  := -fsanitize=signed-integer-overflow
compile_cu = $(CXX) $(CXX_FLAGS) $(CU_FLAGS) -ftrivial-auto-var-init=$1 $(CXXFLAGS) -MMD -MP -x c++ -c $< -o $@

# $(call file_flags,SOURCE): what this file needs beyond COMMON.
file_flags = $(if $(filter kernels/%,$1),$(OPT_KERN),$(OPT)) \
             $(if $(filter kernels/cpu/%_avx2.c,$1),$(AVX2)) $(if $(filter kernels/cpu/%_avx512.c,$1),$(AVX512)) \
             $(if $(filter $(VECTOR_FILES),$1),$(VECTOR)) \
             $(if $(filter tests/%,$1),$(CMOCKA_FLAGS)) $(if $(filter bench/%_mpi.c comm/mpi.c comm/mpi_api.c,$1),$(MPI_FLAGS))
LINK = $(CC) $(if $(SAN),-fsanitize=$(SAN)) -g -pthread $(LDFLAGS)
LIBS = $(PKG_LIBS) -lm $(LDLIBS)

# --- Rules -----------------------------------------------------------------------------------------------------------------

.PHONY: all lib tests fuzzers benches
all: $(BINARY) $(LIB) $(PLUGINS)
lib: $(LIB)
tests: $(TESTS) $(TEST_TOOLS)
fuzzers: $(FUZZES)
benches: $(BENCHES)

# $(call keep_or_write,TEXT): writes the target only where its content changes, so that what depends on it is left alone.
keep_or_write = mkdir -p $(@D); printf '%s\n' '$(strip $1)' | cmp -s - $@ || printf '%s\n' '$(strip $1)' >$@

# Other flags make other objects.
$(BUILD)/flags: FORCE
	@pkg-config --exists --print-errors $(PACKAGES) || { echo "libraries are missing: try 'make deps'" >&2; exit 1; }
	@$(call keep_or_write,$(CC) $(CFLAGS) $(COMMON) $(OPT) $(OPT_KERN) $(AVX2) $(AVX512) $(VECTOR))
$(BUILD)/cxx.flags: FORCE
	@$(call keep_or_write,$(CXX) $(CXXFLAGS) $(CXX_FLAGS) $(CU_FLAGS))
# MPICH may be installed later.
$(BUILD)/mpi.flags: FORCE
	@$(call keep_or_write,$(MPI_FLAGS))
$(OBJ)/comm/mpi.o $(OBJ)/comm/mpi_api.o: $(BUILD)/mpi.flags
$(BUILD)/lib.list: FORCE
	@$(call keep_or_write,$(LIB_SOURCES))

$(OBJ)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC    $<")
	$(Q)$(CC) $(COMMON) $(call file_flags,$<) $(PKG_CFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

# The build id is a digest of the sources: ranks that were built from different ones refuse each other.
$(BUILD)/build_id.c: FORCE
	@mkdir -p $(@D)
	@id=$$(sha256sum $(ALL_SOURCES) $(HEADERS) $(SIMT_SOURCES) $(SIMT_HEADERS) $(CUDA_SOURCES) $(wildcard kernels/cuda/*.h) $(DESCRIPTIONS) launcher/remote_start.sh | sha256sum | cut -c1-32); \
	printf '#include "base/build_id.h"\n\nconst char tandem_build_id[] = "%s";\nconst char tandem_version[] = "$(VERSION)";\n' "$$id" >$@.new; \
	if cmp -s $@.new $@; then rm -f $@.new; else mv -f $@.new $@; fi
$(OBJ)/build_id.o: $(BUILD)/build_id.c base/build_id.h $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(COMMON) $(OPT) $(CFLAGS) -c $< -o $@

# The descriptions of machines are built in: their texts as C, so that they are found wherever the binary lies.
DESCRIPTIONS := $(sort $(wildcard topologies/*.json))
$(BUILD)/descriptions.c: $(DESCRIPTIONS) Makefile
	@mkdir -p $(@D)
	@{ echo '#include "topologies/description.h"'; echo 'const struct topo_embedded topo_embedded[] = {'; \
	for f in $(DESCRIPTIONS); do echo "{\"$$(basename $$f .json)\","; sed 's/[\\"?]/\\&/g; s/.*/"&\\n"/' $$f; echo '},'; done; \
	echo '{NULL, NULL}};'; } >$@
$(OBJ)/descriptions.o: $(BUILD)/descriptions.c topologies/description.h topologies/machine.h $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(COMMON) $(OPT) $(CFLAGS) -c $< -o $@

# So is what other hosts' shells run before they have the binary.
$(BUILD)/remote_start.c: launcher/remote_start.sh Makefile
	@mkdir -p $(@D)
	@{ echo '#include "launcher/remote.h"'; echo 'const char launch_remote_script[] ='; sed 's/[\\"?]/\\&/g; s/.*/"&\\n"/' $<; echo ';'; } >$@
$(OBJ)/remote_start.o: $(BUILD)/remote_start.c launcher/remote.h base/status.h $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(COMMON) $(OPT) $(CFLAGS) -c $< -o $@

$(LIB): $(LIB_SOURCES:%.c=$(OBJ)/%.o) $(OBJ)/build_id.o $(OBJ)/descriptions.o $(OBJ)/remote_start.o $(BUILD)/lib.list
	$(if $(V),,@echo "  AR    $@")
	$(Q)rm -f $@ && $(AR) rcsD $@ $(filter %.o,$^)

# Libraries of kernels take what they need of ours from it.
$(BUILD)/tandem: private override LDFLAGS += -rdynamic
$(LIBT): $(patsubst %.c,$(OBJ)/%.o,$(filter-out tests/t_sim%,$(T_SOURCES)))
	$(Q)rm -f $@ && $(AR) rcsD $@ $(filter %.o,$^)

$(BUILD)/tandem: $(OBJ)/launcher/main.o $(LIB)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(LINK) $^ -o $@ $(LIBS)

# It stands between runtime and comm.
$(BUILD)/tests/runtime_views_test: private override LDFLAGS += $(addprefix -Wl$(comma)--wrap=comm_,allgather_start scatter_start allgather_finish allgather_advance)
# These stand in front of malloc, which no other test wants.
$(BUILD)/tests/comm_sim_test: $(patsubst %.c,$(OBJ)/%.o,$(filter tests/t_sim%,$(T_SOURCES)))
$(TESTS): $(BUILD)/tests/%: $(OBJ)/tests/%.o $(LIBT) $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(LINK) $(filter-out %.a,$^) $(filter %.a,$^) -o $@ $(CMOCKA_LIBS) $(LIBS)

$(TEST_TOOLS): $(BUILD)/tests/%: $(OBJ)/tests/%.o
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(LINK) $^ -o $@ -lm

# The harness, the CUDA kernels as it runs them, and its test.
SIMT_OBJECTS := $(SIMT_SOURCES:%.cpp=$(OBJ)/%.o) $(CUDA_SOURCES:%=$(OBJ)/%.o)
SIMT_TESTS   := $(filter %_simt_test,$(TESTS))
$(OBJ)/kernels/simt/mma.o: private CXX_FLAGS += -O3
$(OBJ)/%.o: %.cpp $(BUILD)/cxx.flags
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CXX   $<")
	$(Q)$(CXX) $(CXX_FLAGS) $(CXXFLAGS) -MMD -MP -c $< -o $@
$(OBJ)/%.cu.o: %.cu $(BUILD)/cxx.flags
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CXX   $<")
	$(Q)$(call compile_cu,pattern)
$(LIBSIMT): $(SIMT_OBJECTS)
	$(if $(V),,@echo "  AR    $@")
	$(Q)rm -f $@ && $(AR) rcsD $@ $^
$(BUILD)/libtandem-simt.so: $(SIMT_OBJECTS)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(CXX) -shared -pthread $(LDFLAGS) $^ -o $@
$(SIMT_TESTS): $(LIBSIMT) $(SIMT_CASES:%=$(OBJ)/%.o)
# (LIB once more: the kernels, too, need it)
$(SIMT_TESTS): private LIBS += $(LIB) -lstdc++
$(BUILD)/bench/simt: $(OBJ)/bench/simt_kernels.cu.o $(LIBSIMT)
$(BUILD)/bench/simt: private LIBS += -lstdc++

# The same again with locals that begin as zeroes: what then has other bits depends on a local that nobody initialised (tests/kernels_locals_test.sh).
ZERO         := $(BUILD)/zero
ZERO_OBJECTS := $(SIMT_SOURCES:%.cpp=$(OBJ)/%.o) $(CUDA_SOURCES:%=$(OBJ)/%.zero.o)
ZERO_TESTS   := $(addprefix $(ZERO)/,kernels_simt_test kernels_cuda_simt_test kernels_mma_simt_test kernels_attention_simt_test)
ZERO_BINARY  := $(if $(PLUGINS),$(ZERO)/tandem $(ZERO)/libtandem-simt.so)
ZERO_ALL     := $(if $(and $(PLUGINS),$(filter tests/kernels_locals_test.sh,$(TEST_SCRIPTS))),$(ZERO_TESTS) $(ZERO_BINARY))
.PHONY: kernels-zero
kernels-zero: $(ZERO_BINARY)
$(OBJ)/%.cu.zero.o: %.cu $(BUILD)/cxx.flags
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CXX   $< with zeroes")
	$(Q)$(call compile_cu,zero)
$(ZERO)/libtandem-simt.so: $(ZERO_OBJECTS)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(CXX) -shared -pthread $(LDFLAGS) $^ -o $@
# It opens the library that lies beside it.
$(ZERO)/tandem: $(BUILD)/tandem
	@mkdir -p $(@D)
	$(Q)ln -f $< $@
$(ZERO_TESTS): $(ZERO)/%: $(OBJ)/tests/%.o $(SIMT_CASES:%=$(OBJ)/%.zero.o) $(ZERO_OBJECTS) $(LIBT) $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(LINK) $(filter-out %.a,$^) $(filter %.a,$^) -o $@ $(CMOCKA_LIBS) $(LIBS) -lstdc++

# For GPUs: what Tandem is for (GB10, RTX 5090) and Hopper. A kernel that spills registers is a fault. CUDA=0, or no nvcc: nothing is done.
NVCC       := $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
CUDA_ARCHS := 120a 121a 90 80
CUDA       := 1
NVCC_FLAGS := -std=c++17 -O3 -fmad=false -Xcompiler -fPIC -I. -Werror all-warnings -Xptxas -v $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a,code=sm_$a)
PTX        := $(OBJ)/kernels/cuda/ptx
.PHONY: cuda cuda-self-test
ifneq ($(and $(NVCC),$(filter-out 0,$(CUDA))),)
cuda: $(CUDA_SOURCES:%=$(OBJ)/%.gpu.o) $(BUILD)/cuda_self_test
	@echo "cuda: $(words $(CUDA_SOURCES)) files for $(CUDA_ARCHS:%=sm_%), no spills"
	@tests/check_ptx.sh $(PTX) $(OBJ)/kernels/cuda
# Wants a GPU: are the instructions what the harness takes them for? Are the kernels right there, and whole programs?
cuda-self-test: gpu
	@tests/gpu.sh $(BUILD)
# The objects of the harness's tests, and of its device, with nvcc's kernels and CUDA's runtime.
GPU_OBJECTS := $(OBJ)/tests/simt/on_a_gpu.o $(CUDA_SOURCES:%=$(OBJ)/%.gpu.o)
CUDART      := $(firstword $(wildcard $(addsuffix libcudart_static.a,$(dir $(realpath $(NVCC)))../lib64/ $(dir $(realpath $(NVCC)))../targets/x86_64-linux/lib/ /usr/lib/x86_64-linux-gnu/)))
GPU_LIBS    := $(CUDART) -ldl -lrt -lstdc++
GPU         := $(BUILD)/gpu
GPU_TESTS   := $(addprefix $(GPU)/tests/,kernels_cuda_simt_test kernels_mma_simt_test kernels_attention_simt_test compare_logits)
.PHONY: gpu
gpu: $(if $(CUDART),$(BUILD)/cuda_self_test $(GPU_TESTS) $(GPU)/tandem $(GPU)/libtandem-simt.so $(GPU)/bench/cuda_kernels)
	$(if $(CUDART),@:,@echo "gpu: skipped, libcudart_static.a is not beside nvcc")
$(GPU)/tests/%_simt_test: $(OBJ)/tests/%_simt_test.o $(GPU_OBJECTS) $(LIBT) $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(LINK) $(filter-out %.a,$^) $(filter %.a,$^) -o $@ $(CMOCKA_LIBS) $(LIBS) $(GPU_LIBS)
$(GPU)/bench/cuda_kernels: $(OBJ)/bench/cuda_kernels.o $(GPU_OBJECTS) $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(LINK) $^ -o $@ $(LIBS) $(GPU_LIBS)
$(GPU)/libtandem-simt.so: $(OBJ)/kernels/simt/backend.o $(GPU_OBJECTS)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(CXX) -shared -pthread $(LDFLAGS) $^ -o $@ $(GPU_LIBS)
$(GPU)/tandem $(GPU)/tests/compare_logits: $(GPU)/%: $(BUILD)/%
	@mkdir -p $(@D)
	$(Q)ln -f $< $@
else
cuda cuda-self-test gpu:
	@echo "$@: skipped, $(if $(NVCC),CUDA=0,there is no nvcc)"
endif
$(BUILD)/cuda_self_test: $(OBJ)/tests/simt/on_device.cu.gpu.o $(OBJ)/kernels/cuda/self_test.cu.gpu.o
	$(Q)$(NVCC) -o $@ $^
$(OBJ)/%.cu.gpu.o: %.cu $(SIMT_HEADERS) $(wildcard kernels/cuda/*.h kernels/*.h base/*.h) Makefile
	@mkdir -p $(@D) $(PTX)
	$(if $(V),,@echo "  NVCC  $<")
	$(Q)$(NVCC) $(NVCC_FLAGS) --keep --keep-dir $(PTX) -c $< -o $@ 2>$@.log || { cat $@.log >&2; rm -f $@; exit 1; }
	@if grep -E '[1-9][0-9]* bytes spill' $@.log >&2; then echo "$<: registers are spilled" >&2; rm -f $@; exit 1; fi

# A fuzzer is a function LLVMFuzzerTestOneInput; tests/fuzz/driver.c feeds it with mutated seeds, so that any compiler will do.
$(FUZZES): $(BUILD)/fuzz/%: $(OBJ)/tests/fuzz/%.o $(OBJ)/tests/fuzz/driver.o $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(LINK) $^ -o $@ $(LIBS)

$(BENCHES): $(BUILD)/bench/%: $(OBJ)/bench/%.o $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LINK  $@")
	$(Q)$(LINK) $^ -o $@ $(LIBS) $(if $(filter %_mpi,$@),$(MPI_LIBS))

-include $(wildcard $(addsuffix /*.d,$(addprefix $(OBJ)/,$(SOURCE_DIRS) kernels/simt kernels/cuda tests tests/simt tests/fuzz bench)))

# --- Packages --------------------------------------------------------------------------------------------------------------

DEPS      := gcc g++ libc6-dev make pkg-config libhwloc-dev libjansson-dev libxxhash-dev libsodium-dev libpcre2-dev libcmocka-dev libmpich-dev mpich libucx-dev \
             python3 python3-pip ca-certificates iproute2 procps
DEPS_CROSS := gcc-$(CROSS)-linux-gnu qemu-user-static
DEPS_SYSROOT := libc6-dev libhwloc-dev libjansson-dev libxxhash-dev libsodium-dev libpcre2-dev libcmocka-dev libucx-dev libmpich-dev
DEPS_RDMA := qemu-system-x86 busybox-static kmod openssh-client ibverbs-providers
DEPS_LINT := clang-format clang-tidy cppcheck shellcheck

# $(call apt_install,PACKAGES): nothing is asked of the network where all are there already.
define apt_install
@if ! command -v dpkg-query >/dev/null; then echo "not a Debian system; what is needed there is called: $1"; exit 0; fi; \
missing=; for p in $1; do \
  dpkg-query -W -f='$${db:Status-Abbrev}' $$p 2>/dev/null | grep -q '^.i' || missing="$$missing $$p"; done; \
[ -n "$$missing" ] || exit 0; \
echo "installing$$missing"; \
sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
$$sudo apt-get update -q || echo "apt-get update failed; trying with the lists that are there" >&2; \
$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing
endef

.PHONY: deps deps-lint deps-rdma
deps:
	$(call apt_install,$(DEPS) $(if $(CROSS),$(DEPS_CROSS)))
	$(if $(CROSS),@launcher/sysroot.sh $(CROSS:aarch64=arm64) $(SYSROOT) $(DEPS_SYSROOT))
deps-lint: deps # after it: apt takes one at a time
	$(call apt_install,$(DEPS_LINT))
# A kernel and an ssh server for emulated machines: unpacked, not installed.
deps-rdma: deps
	@[ "$$(uname -m)" = x86_64 ] || { echo "the emulated machines with RDMA are x86-64, as this one would have to be" >&2; exit 2; }
	$(call apt_install,$(DEPS_RDMA))
	@launcher/sysroot.sh amd64 $(BUILD)/rdma/files linux-image-amd64 openssh-server

# --- Demo, tests, benchmarks -----------------------------------------------------------------------------------------------

.PHONY: demo _demo test _test test-long _test-long test-aarch64 test-rdma bench _bench bench-peers fuzz _fuzz
PROMPT := What is the capital of France? Answer in one sentence.

demo: deps
	@$(MAKE) --no-print-directory _demo
_demo: all
	@model=$$(tests/fetch_demo_model.sh) || exit 1; \
	set -x; $(BUILD)/tandem topo -n 2 && $(BUILD)/tandem run "$$model" -n 2 -p '$(PROMPT)'

# SAN_SKIP: programs that make no sense, or take too long, under a sanitizer; nor do the scripts run there.
SAN_SKIP :=
RUN_TESTS := $(if $(SAN),$(filter-out $(SAN_SKIP:%=$(BUILD)/tests/%),$(TESTS)),$(TESTS) $(TEST_SCRIPTS))

test: deps
	@$(MAKE) --no-print-directory _test
_test: all $(TEST_TOOLS) $(ZERO_ALL) $(filter $(BUILD)/%,$(RUN_TESTS))
	@BUILD=$(BUILD) TANDEM=$(BUILD)/tandem tests/run.sh $(RUN_TESTS)

test-long: deps
	@$(MAKE) --no-print-directory _test-long
_test-long: all $(TEST_TOOLS) $(ZERO_ALL) $(filter $(BUILD)/%,$(RUN_TESTS))
	@LONG=1 BUILD=$(BUILD) TANDEM=$(BUILD)/tandem tests/run.sh $(RUN_TESTS)

# For hosts of another architecture, to be launched from this one: their binary and its libraries, unpacked beside this machine's ($(NATIVE)/bundle-aarch64).
NATIVE := build
.PHONY: bundle
bundle:
	@[ -n "$(CROSS)" ] || { echo "make bundle: wants the architecture of the hosts, where it is another one: make bundle ARCH=aarch64" >&2; exit 2; }
	@env -u PKG_CONFIG_SYSROOT_DIR -u PKG_CONFIG_LIBDIR $(MAKE) --no-print-directory ARCH= BUILD=$(NATIVE) all
	@$(MAKE) --no-print-directory BUILD=build-$(CROSS) deps
	@$(MAKE) --no-print-directory BUILD=build-$(CROSS) all
	@rm -rf $(NATIVE)/bundle-$(CROSS) $(NATIVE)/bundle-$(CROSS).new && mkdir -p $(NATIVE)/bundle-$(CROSS).new
	@$(NATIVE)/tandem bundle-make build-$(CROSS)/tandem $(SYSROOT)/usr/lib/$(CROSS)-linux-gnu:$(SYSROOT)/lib/$(CROSS)-linux-gnu >$(NATIVE)/bundle-$(CROSS).tar
	@tar xof $(NATIVE)/bundle-$(CROSS).tar -C $(NATIVE)/bundle-$(CROSS).new && rm -f $(NATIVE)/bundle-$(CROSS).tar
	@mv $(NATIVE)/bundle-$(CROSS).new $(NATIVE)/bundle-$(CROSS)

# The Arm build, emulated, gives the bits of this machine's.
test-aarch64:
	@$(MAKE) --no-print-directory all
	@$(MAKE) --no-print-directory ARCH=aarch64 BUILD=build-aarch64 deps
	@$(MAKE) --no-print-directory ARCH=aarch64 BUILD=build-aarch64 all tests benches fuzzers
	@$(MAKE) --no-print-directory ARCH=aarch64 BUILD=build-aarch64 NATIVE=$(BUILD) bundle
	@BUILD=$(BUILD) TANDEM=$(BUILD)/tandem TANDEM_OTHER=build-aarch64/tandem tests/run.sh tests/aarch64.sh

# Two emulated machines with RDMA in software, on x86-64.
test-rdma: deps-rdma
	@$(MAKE) --no-print-directory all
	@BUILD=$(BUILD) TANDEM=$(BUILD)/tandem tests/run.sh tests/rdma.sh

bench: deps
	@$(MAKE) --no-print-directory _bench
_bench: all benches
	@if [ -x bench/run.sh ]; then BUILD=$(BUILD) TANDEM=$(BUILD)/tandem bench/run.sh; else echo "built: $(BENCHES)"; fi
bench-peers:
	@BUILD=$(BUILD) bench/peers.sh

# FUZZ_S: seconds for each fuzzer.
FUZZ_S := 10
fuzz:
	@$(MAKE) --no-print-directory SAN=$(or $(SAN),address$(comma)undefined) _fuzz
_fuzz: fuzzers
	@for f in $(FUZZES); do name=$$(basename $$f); \
	  echo "$$name: $(FUZZ_S) s"; $$f -seconds=$(FUZZ_S) tests/fuzz/seeds/$$name || exit 1; done

# --- Checks ----------------------------------------------------------------------------------------------------------------

.PHONY: lint lint-tidy lint-cppcheck lint-shell analyze check-headers check-layers format
lint: lint-tidy lint-cppcheck lint-shell

LINT_HINTS = $(if $(filter base/status.c,$<),,-include tests/lint_hints.h)
# One stamp per file, so that only changed files (or files with changed headers) are looked at again.
TIDY_SOURCES := $(LIB_SOURCES) $(filter launcher/main.c,$(SOURCES)) $(TEST_SOURCES) $(TEST_TOOLS:$(BUILD)/%=%.c) $(T_SOURCES) $(FUZZ_SOURCES) \
                $(filter-out %_mpi.c,$(BENCH_SOURCES))
TIDY_STAMPS  := $(TIDY_SOURCES:%.c=$(BUILD)/lint/%.tidy)
lint-tidy: $(TIDY_STAMPS)
$(BUILD)/lint/%.tidy: %.c .clang-tidy
	@mkdir -p $(@D)
	$(if $(V),,@echo "  TIDY  $<")
	$(Q)clang-tidy --quiet --warnings-as-errors='*' $< -- $(LINT_HINTS) $(COMMON) $(call file_flags,$<) $(PKG_CFLAGS) 2>$@.log || { cat $@.log >&2; exit 1; }
	@$(CC) $(COMMON) $(call file_flags,$<) $(PKG_CFLAGS) -MM -MP -MT $@ -MF $(@:.tidy=.d) $< && touch $@
# The kernels, as g++ sees them. Not the harness: what it includes of the C++ library takes 2 s a file.
TIDY_CXX := $(CUDA_SOURCES) $(SIMT_CASES) $(wildcard bench/*.cu)
lint-tidy: $(TIDY_CXX:%=$(BUILD)/lint/%.tidy)
$(TIDY_CXX:%=$(BUILD)/lint/%.tidy): $(BUILD)/lint/%.tidy: % .clang-tidy
	@mkdir -p $(@D)
	$(if $(V),,@echo "  TIDY  $<")
	$(Q)clang-tidy --quiet --warnings-as-errors='*' $< -- -x c++ $(CXX_FLAGS) 2>$@.log || { cat $@.log >&2; exit 1; }
	@$(CXX) -x c++ $(CXX_FLAGS) -MM -MP -MT $@ -MF $(@:.tidy=.d) $< && touch $@
-include $(wildcard $(addsuffix /*.d,$(addprefix $(BUILD)/lint/,$(SOURCE_DIRS) kernels/cuda tests tests/simt tests/fuzz bench)))

# Clang's path analyser, for a human to read: it sees one file at a time, believes that a callee may leave its outputs alone, and is
# wrong too often to fail a build. Some seconds per file.
analyze:
	@for f in $(filter-out tests/% bench/% base/status.c,$(TIDY_SOURCES)); do \
	  clang-tidy --quiet --checks='-*,clang-analyzer-*,-clang-analyzer-security.*,-clang-analyzer-optin.*' $$f -- $(LINT_HINTS) \
	    $(COMMON) $(AVX512) $(PKG_CFLAGS) 2>/dev/null; done

lint-cppcheck:
	@mkdir -p $(BUILD)/lint/cppcheck
	$(Q)cppcheck --quiet --std=c11 --error-exitcode=1 --inline-suppr --enable=warning,portability --suppress=missingIncludeSystem \
	  --suppress=uninitvar --suppress=moduloAlwaysTrueFalse --suppress=invalidPointerCast --cppcheck-build-dir=$(BUILD)/lint/cppcheck -D_GNU_SOURCE -I. $(TIDY_SOURCES)
lint-shell:
	$(Q)shellcheck --severity=warning $(SCRIPTS)

# A *_body.h is no header: it is included several times, under macros that say for what.
WHOLE_HEADERS := $(filter-out %_body.h,$(HEADERS))
check-headers: $(WHOLE_HEADERS:%=$(BUILD)/headers/%.ok)
	@echo "check-headers: $(words $(WHOLE_HEADERS)) headers compile alone"
$(BUILD)/headers/%.ok: % $(BUILD)/flags FORCE
	@mkdir -p $(@D)
	$(Q)$(CC) $(COMMON) $(PKG_CFLAGS) -Wno-unused -fsyntax-only -x c -include $< /dev/null

check-layers:
	@tests/check_layers.sh

format:
	clang-format -i $(TIDY_SOURCES) $(HEADERS)

# --- Install ---------------------------------------------------------------------------------------------------------------

.PHONY: install uninstall clean help
install: all
	install -D -m 755 $(BUILD)/tandem $(DESTDIR)$(PREFIX)/bin/tandem
	install -D -m 644 LICENSE $(DESTDIR)$(PREFIX)/share/doc/tandem/LICENSE
	@for b in $(wildcard $(BUILD)/bundle-*); do mkdir -p $(DESTDIR)$(PREFIX)/lib/tandem && cp -rT $$b $(DESTDIR)$(PREFIX)/lib/tandem/$${b##*/}; done
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/tandem $(DESTDIR)$(PREFIX)/share/doc/tandem/LICENSE
	rm -rf $(DESTDIR)$(PREFIX)/lib/tandem
	-rmdir $(DESTDIR)$(PREFIX)/share/doc/tandem 2>/dev/null

clean:
	rm -rf build build-aarch64 build-address build-undefined build-address-undefined build-thread $(BUILD)

help:
	@echo 'targets: all (default) cuda gpu cuda-self-test kernels-zero deps deps-lint deps-rdma demo test test-long test-aarch64 test-rdma bundle bench bench-peers lint analyze check-headers check-layers format fuzz'
	@echo '         install uninstall (PREFIX, DESTDIR) clean; lib tests benches fuzzers; $(BUILD)/tests/NAME for one program'
	@echo 'settings: DEV=1 (warnings are errors) SAN=address,undefined|thread CUDA=0 V=1 (show commands) BUILD=DIR ARCH=aarch64'
	@echo '          ONLY="base kernels" (library of these rooms) T="base_%" (tests of these names) FUZZ_S=10'
