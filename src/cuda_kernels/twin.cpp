// A CPU in the place of a GPU, for tests of kernels.cu, which is compiled behind this file: the threads of a block are fibres that
// run in turn up to the next barrier. What warps and the tensor cores do together is done here as PTX's manual defines it.

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define __device__
#define __global__
#define __launch_bounds__(threads)
// Blocks run one after the other: what they share may be the same memory each time.
#define __shared__ static

struct Index {
    unsigned x, y, z;
};

static Index threadIdx, blockIdx, gridDim;

static const int LANES = 32;

// ---- Fibres ----

// A context to begin in; from then on jumps, which unlike swapcontext ask nothing of the kernel.
struct Fibre {
    ucontext_t begin;
    jmp_buf place;
    std::vector<char> stack;
    bool begun, ended;
};

static std::vector<Fibre> fibres;
static jmp_buf scheduler;
static int running;
// Deposits of the threads in what their warp does together.
static u64 deposits[1024][5];

// The end of a turn. Every fibre has one turn between two of any other's: what a warp's lanes write before a rest they all can
// read behind it.
static void rest() {
    if (!_setjmp(fibres[running].place)) _longjmp(scheduler, 1);
    threadIdx.x = (unsigned)running;
}

// Fibres that wait at a barrier, and how often all have been let through. That is done between turns, so that a warp's lanes
// leave it in the same one.
static int waiting;
static u64 barriers;

static void __syncthreads() {
    waiting++;
    for (u64 behind = barriers; behind == barriers;) rest();
}

static int lane() { return running % LANES; }
static int warp_start() { return running - lane(); }

// ---- What warps do together ----

template <class Number>
static Number from_lane(Number value, int source) {
    memcpy(deposits[running], &value, sizeof value);
    rest();
    Number found;
    memcpy(&found, deposits[warp_start() + source], sizeof found);
    rest();
    return found;
}

template <class Number>
static Number shuffle_xor(Number value, int distance) {
    return from_lane(value, lane() ^ distance);
}

static int shuffle_up(int value, int distance) {
    return from_lane(value, lane() < distance ? lane() : lane() - distance);
}

static float __uint_as_float(u32 bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static u32 bf16(float value) {
    u32 bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static u32 pack_bf16(float low, float high) { return bf16(low) | bf16(high) << 16; }

static float half_of(u64 packed, int half) { return __uint_as_float((u32)(packed >> (16 * half) & 0xffff) << 16); }

static void multiply_add(float c[4], const u32 a[4], u32 b0, u32 b1) {
    for (int i = 0; i < 4; i++) deposits[running][i] = (u64)a[i] | (i < 2 ? (u64)(i ? b1 : b0) << 32 : 0);
    rest();
    for (int i = 0; i < 4; i++) {
        int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
        double sum = 0;
        for (int k = 0; k < 16; k++) {
            // Element (row, k) of a: register 2·(k / 8) + row / 8 of lane 4·(row mod 8) + (k mod 8) / 2.
            u64 left = deposits[warp_start() + row % 8 * 4 + k % 8 / 2][k / 8 * 2 + row / 8];
            // Element (k, column) of b: register k / 8 of lane 4·column + (k mod 8) / 2.
            u64 right = deposits[warp_start() + column * 4 + k % 8 / 2][k / 8] >> 32;
            sum += (double)half_of(left, k % 2) * half_of(right, k % 2);
        }
        c[i] += (float)sum;
    }
    rest();
}

static void load_matrices_as(u32 b[4], const u16 *row, bool transposed) {
    deposits[running][0] = (u64)(uintptr_t)row;
    rest();
    for (int matrix = 0; matrix < 4; matrix++) {
        auto element = [&](int i, int j) {
            return ((const u16 *)(uintptr_t)deposits[warp_start() + matrix * 8 + i][0])[j];
        };
        int i = lane() / 4, j = lane() % 4 * 2;
        u32 low = transposed ? element(j, i) : element(i, j);
        u32 high = transposed ? element(j + 1, i) : element(i, j + 1);
        b[matrix] = low | high << 16;
    }
    rest();
}

static void load_matrices(u32 b[4], const u16 *row) { load_matrices_as(b, row, false); }
static void load_matrices_transposed(u32 b[4], const u16 *row) { load_matrices_as(b, row, true); }

static int min(int a, int b) { return a < b ? a : b; }

// ---- Launches ----

struct Call {
    void (*run)(const void *kernel, void **arguments);
    const void *kernel;
    void **arguments;
};

static Call call;

static void fibre_main() {
    threadIdx = {(unsigned)running, 0, 0};
    call.run(call.kernel, call.arguments);
    fibres[running].ended = true;
    _longjmp(scheduler, 1);
}

// The next turn of a fibre.
static void resume(Fibre &fibre) {
    if (_setjmp(scheduler)) return;
    if (fibre.begun) _longjmp(fibre.place, 1);
    fibre.begun = true;
    setcontext(&fibre.begin);
}

static void run_block(int threads) {
    fibres.resize(threads);
    for (int t = 0; t < threads; t++) {
        Fibre &fibre = fibres[t];
        fibre.stack.resize(64 << 10);
        fibre.begun = fibre.ended = false;
        getcontext(&fibre.begin);
        fibre.begin.uc_stack.ss_sp = fibre.stack.data();
        fibre.begin.uc_stack.ss_size = fibre.stack.size();
        fibre.begin.uc_link = nullptr;
        makecontext(&fibre.begin, fibre_main, 0);
    }
    for (int left = threads; left > 0;) {
        for (int now = 0; now < threads; now++) {
            if (fibres[now].ended) continue;
            running = now;
            resume(fibres[now]);
            left -= fibres[now].ended;
        }
        if (waiting == left) {
            waiting = 0;
            barriers++;
        }
    }
}

template <class... Arguments, size_t... Places>
static void unpack(void (*kernel)(Arguments...), void **arguments, std::index_sequence<Places...>) {
    kernel(*(Arguments *)arguments[Places]...);
}

template <class... Arguments>
static Call call_of(void (*kernel)(Arguments...), void **arguments) {
    auto run = [](const void *kernel, void **arguments) {
        unpack((void (*)(Arguments...))kernel, arguments, std::index_sequence_for<Arguments...>());
    };
    return {run, (const void *)kernel, arguments};
}

// Runs the kernel that `launch`, below kernels.cu, has chosen.
static void run_grid(Call chosen, unsigned x, unsigned y, unsigned threads) {
    call = chosen;
    gridDim = {x, y, 1};
    for (unsigned j = 0; j < y; j++)
        for (unsigned i = 0; i < x; i++) {
            blockIdx = {i, j, 0};
            run_block((int)threads);
        }
}
