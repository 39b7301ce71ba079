// What libtorch has no operation for: negatives drawn on the GPU, candidates gathered, scored and added up in one pass, and a
// full softmax in one pass over the bank. Rows and their numbers are those of crate::bank, formulas those of crate::objective.
//
// Compiled when a run starts, by NVRTC for the GPU at hand (behind instructions.cu), and in tests by a C++ compiler (behind
// twin.cpp). Both define
//   DIM        D, the numbers in a row
//   BANK_BF16  1 where the bank's rows are bf16, 0 where they are f32
//
// Every sum is taken in one order, so that results are the same bits each time.

#if BANK_BF16
typedef u16 Element;
#else
typedef float Element;
#endif

constexpr int WARP = 32;
#define MINUS_INFINITY __uint_as_float(0xff800000u)

// ---- A row across the lanes of a warp ----

// A lane holds VECTOR neighbouring numbers of each stretch of 32·VECTOR.
constexpr int VECTOR = DIM % 128 == 0 ? 4 : DIM % 64 == 0 ? 2 : 1;
constexpr int STRETCHES = (DIM + WARP * VECTOR - 1) / (WARP * VECTOR);

struct Row {
    float at[STRETCHES * VECTOR];
};

__device__ inline float as_float(float value) { return value; }
__device__ inline float as_float(u16 value) { return __uint_as_float((u32)value << 16); }

template <class Number>
struct alignas(sizeof(Number) * VECTOR) Vector {
    Number at[VECTOR];
};

template <class Number>
__device__ inline Row load_row(const Number *row, int lane) {
    Row loaded;
#pragma unroll
    for (int stretch = 0; stretch < STRETCHES; stretch++) {
        int start = (stretch * WARP + lane) * VECTOR;
        bool inside = DIM % (WARP * VECTOR) == 0 || start < DIM;
        Vector<Number> vector = {};
        if (inside) vector = *(const Vector<Number> *)(row + start);
#pragma unroll
        for (int v = 0; v < VECTOR; v++) loaded.at[stretch * VECTOR + v] = as_float(vector.at[v]);
    }
    return loaded;
}

// `write(d, value)` for each number d of the row that this lane holds.
template <class Write>
__device__ inline void each_number(const Row &row, int lane, Write write) {
#pragma unroll
    for (int stretch = 0; stretch < STRETCHES; stretch++) {
#pragma unroll
        for (int v = 0; v < VECTOR; v++) {
            int d = (stretch * WARP + lane) * VECTOR + v;
            if (DIM % (WARP * VECTOR) == 0 || d < DIM) write(d, row.at[stretch * VECTOR + v]);
        }
    }
}

__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
    return value;
}

__device__ inline float dot(const Row &a, const Row &b) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < STRETCHES * VECTOR; i++) sum = fmaf(a.at[i], b.at[i], sum);
    return warp_sum(sum);
}

__device__ inline void add_scaled(Row &sum, float factor, const Row &row) {
#pragma unroll
    for (int i = 0; i < STRETCHES * VECTOR; i++) sum.at[i] = fmaf(factor, row.at[i], sum.at[i]);
}

__device__ inline void scale(Row &row, float factor) {
#pragma unroll
    for (int i = 0; i < STRETCHES * VECTOR; i++) row.at[i] *= factor;
}

// ---- Negatives ----

__device__ inline u32 rotate(u32 value, int by) { return (value << by) | (value >> (32 - by)); }

__device__ inline void quarter_round(u32 &a, u32 &b, u32 &c, u32 &d) {
    a += b, d = rotate(d ^ a, 16);
    c += d, b = rotate(b ^ c, 12);
    a += b, d = rotate(d ^ a, 8);
    c += d, b = rotate(b ^ c, 7);
}

// Block number `block` of the ChaCha8 stream of crate::rng with the key (seed, purpose, counter, index).
__device__ inline void chacha8(const u64 key[4], u64 block, u32 words[16]) {
    u32 start[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        start[4 + 2 * i] = (u32)key[i];
        start[5 + 2 * i] = (u32)(key[i] >> 32);
    }
    start[12] = (u32)block, start[13] = (u32)(block >> 32);
    start[14] = start[15] = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) words[i] = start[i];
#pragma unroll
    for (int twice = 0; twice < 4; twice++) {
#pragma unroll
        for (int i = 0; i < 4; i++) quarter_round(words[i], words[4 + i], words[8 + i], words[12 + i]);
#pragma unroll
        for (int i = 0; i < 4; i++)
            quarter_round(words[i], words[4 + (i + 1) % 4], words[8 + (i + 2) % 4], words[12 + (i + 3) % 4]);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) words[i] += start[i];
}

constexpr int DRAWING_THREADS = 256;

// The uniform negatives of crate::bank::noise, the same numbers: `negatives` [B, k] of 0..n for the batch number *draw.
// One thread block a batch row. A word of the stream that Lemire's method refuses is passed over; the words after it move up.
extern "C" __global__ void __launch_bounds__(DRAWING_THREADS)
    draw_uniform(int *negatives, const long long *draw, u64 seed, u64 purpose, u32 n, int k) {
    __shared__ int accepted_by_warp[DRAWING_THREADS / WARP];
    const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const u64 key[4] = {seed, purpose, (u64)*draw, blockIdx.x};
    const u32 refused_below = (0u - n) % n;
    int *row = negatives + (u64)blockIdx.x * k;
    int filled = 0;
    for (u64 first = 0; filled < k; first += DRAWING_THREADS) {
        u32 words[16];
        chacha8(key, first + thread, words);
        int accepted = 0;
#pragma unroll
        for (int i = 0; i < 16; i++) accepted += (u32)((u64)words[i] * n) >= refused_below;
        int before = accepted;
#pragma unroll
        for (int distance = 1; distance < WARP; distance *= 2) {
            int other = shuffle_up(before, distance);
            if (lane >= distance) before += other;
        }
        if (lane == WARP - 1) accepted_by_warp[warp] = before;
        __syncthreads();
        int position = filled + before - accepted, all = 0;
        for (int w = 0; w < DRAWING_THREADS / WARP; w++) {
            if (w < warp) position += accepted_by_warp[w];
            all += accepted_by_warp[w];
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            u64 product = (u64)words[i] * n;
            if ((u32)product < refused_below) continue;
            if (position < k) row[position] = (int)(product >> 32);
            position++;
        }
        filled += all;
        __syncthreads();
    }
}

// ---- Candidates that are gathered for each feature ----

constexpr int GATHERING_WARPS = 4;
// Rows that a warp has under way at once, to cover the time that memory takes.
constexpr int AT_ONCE = 4;

// The part of k candidates that this block takes: chunk blockIdx.x of gridDim.x.
struct Part {
    int start, end;
};

__device__ inline Part part_of(int k) {
    int length = (k + gridDim.x - 1) / gridDim.x;
    int start = min((int)blockIdx.x * length, k);
    return {start, min(start + length, k)};
}

// Adds up a row of each warp: `rows` [DIM], the block's sum. All threads call it.
__device__ inline void add_up_warps(const Row &row, float (*shared)[DIM], float *rows) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    each_number(row, lane, [&](int d, float value) { shared[warp][d] = value; });
    __syncthreads();
    for (int d = threadIdx.x; d < DIM; d += GATHERING_WARPS * WARP) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < GATHERING_WARPS; w++) sum += shared[w][d];
        rows[d] = sum;
    }
}

// NCE's negatives (crate::objective::device::nce): of each batch row blockIdx.y and each part of its negatives, the sum of
// their losses, `losses` [B, parts], and of their rows weighted by the loss's derivative, `rows` [B, parts, DIM].
// `offsets` and `constants` have one number for each row of the bank where `by_row`, else one for all.
extern "C" __global__ void __launch_bounds__(GATHERING_WARPS *WARP)
    nce_partials(const float *features, const Element *bank, const int *negatives, const float *offsets,
                 const float *constants, int by_row, int k, float inverse_temperature, double *losses, float *rows) {
    __shared__ float shared[GATHERING_WARPS][DIM];
    __shared__ double loss_by_warp[GATHERING_WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Row feature = load_row(features + (u64)blockIdx.y * DIM, lane);
    const int *own = negatives + (u64)blockIdx.y * k;
    const Part part = part_of(k);
    Row sum = {};
    // Two numbers, the second of which holds what rounding took from the first.
    float loss = 0, lost = 0;
    for (int j = part.start + warp * AT_ONCE; j < part.end; j += GATHERING_WARPS * AT_ONCE) {
        int index[AT_ONCE];
        Row row[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            index[i] = own[min(j + i, part.end - 1)];
            row[i] = load_row(bank + (u64)index[i] * DIM, lane);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            float score = dot(feature, row[i]);
            if (j + i >= part.end) continue;
            int at = by_row ? index[i] : 0;
            float x = fmaf(score, inverse_temperature, offsets[at]);
            float e = expf(-fabsf(x));
            float term = fmaxf(x, 0.0f) + log1pf(e) + constants[at] - lost;
            float next = loss + term;
            lost = (next - loss) - term;
            loss = next;
            add_scaled(sum, (x >= 0 ? 1.0f : e) / (1.0f + e), row[i]);
        }
    }
    if (lane == 0) loss_by_warp[warp] = (double)loss - lost;
    const u64 place = (u64)blockIdx.y * gridDim.x + blockIdx.x;
    add_up_warps(sum, shared, rows + place * DIM);
    if (threadIdx.x == 0) {
        double all = 0;
        for (int w = 0; w < GATHERING_WARPS; w++) all += loss_by_warp[w];
        losses[place] = all;
    }
}

// The negatives of the sampled softmax: of each batch row and part, with the logits x in units of ln 2,
// `largest` = max x and `totals` = Σ 2^(x − largest) [B, parts], and `rows` = Σ 2^(x − largest)·M[j] [B, parts, DIM].
// A part without candidates has −∞, 0 and 0.
extern "C" __global__ void __launch_bounds__(GATHERING_WARPS *WARP)
    sampled_partials(const float *features, const Element *bank, const int *negatives, int k, float logits_per_score,
                     float *largest, float *totals, float *rows) {
    __shared__ float shared[GATHERING_WARPS][DIM];
    __shared__ float largest_by_warp[GATHERING_WARPS], total_by_warp[GATHERING_WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Row feature = load_row(features + (u64)blockIdx.y * DIM, lane);
    const int *own = negatives + (u64)blockIdx.y * k;
    const Part part = part_of(k);
    Row sum = {};
    float top = MINUS_INFINITY, total = 0;
    for (int j = part.start + warp * AT_ONCE; j < part.end; j += GATHERING_WARPS * AT_ONCE) {
        Row row[AT_ONCE];
        float x[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            row[i] = load_row(bank + (u64)own[min(j + i, part.end - 1)] * DIM, lane);
        float now = top;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            x[i] = dot(feature, row[i]) * logits_per_score;
            if (j + i >= part.end) x[i] = MINUS_INFINITY;
            now = fmaxf(now, x[i]);
        }
        float factor = exp2f(top - now);
        total *= factor;
        scale(sum, factor);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            float weight = exp2f(x[i] - now);
            total += weight;
            add_scaled(sum, weight, row[i]);
        }
        top = now;
    }
    if (lane == 0) largest_by_warp[warp] = top;
    __syncthreads();
    float all = MINUS_INFINITY;
    for (int w = 0; w < GATHERING_WARPS; w++) all = fmaxf(all, largest_by_warp[w]);
    float factor = top == MINUS_INFINITY ? 0.0f : exp2f(top - all);
    scale(sum, factor);
    if (lane == 0) total_by_warp[warp] = total * factor;
    const u64 place = (u64)blockIdx.y * gridDim.x + blockIdx.x;
    add_up_warps(sum, shared, rows + place * DIM);
    if (threadIdx.x == 0) {
        float sums = 0;
        for (int w = 0; w < GATHERING_WARPS; w++) sums += total_by_warp[w];
        largest[place] = all;
        totals[place] = sums;
    }
}

// ---- The bank's move ----

constexpr int UPDATING_WARPS = 4;

__device__ inline double warp_sum(double value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
    return value;
}

// row ← unit(momentum·row + (1 − momentum)·feature) for the rows `indices` [batch], distinct; nothing where *wanted is 0
// or the mixture has no direction. One warp a row.
extern "C" __global__ void __launch_bounds__(UPDATING_WARPS *WARP)
    update_rows(Element *bank, const float *features, const long long *indices, const unsigned char *wanted, int batch,
                float momentum, float rest) {
    const int lane = threadIdx.x % WARP, b = blockIdx.x * UPDATING_WARPS + threadIdx.x / WARP;
    // The same for all lanes of a warp.
    if (b >= batch) return;
    Element *row = bank + (u64)indices[b] * DIM;
    Row mixed = load_row(row, lane);
    const Row feature = load_row(features + (u64)b * DIM, lane);
    scale(mixed, momentum);
    add_scaled(mixed, rest, feature);
    double squares = 0;
#pragma unroll
    for (int i = 0; i < STRETCHES * VECTOR; i++) squares += (double)mixed.at[i] * mixed.at[i];
    const float norm = (float)sqrt(warp_sum(squares));
    if (!*wanted || !(norm > 0.0f) || norm == -MINUS_INFINITY) return;
    each_number(mixed, lane, [&](int d, float value) {
#if BANK_BF16
        row[d] = (u16)pack_bf16(value / norm, 0.0f);
#else
        row[d] = value / norm;
#endif
    });
}

#if DIM % 16 == 0 && DIM <= 128
// ---- Full softmax: one pass over the bank that yields loss and gradient ----
//
// Attention with keys = values = bank, split over the bank, by the tensor cores in bf16 with sums in f32. Each warp takes 16
// features; a thread block has a tile of the bank's rows in shared memory, for all its warps, and the next one under way.
// Names of fragments, and which lane holds what of them, are those of PTX's mma.m16n8k16 and ldmatrix.

constexpr int SOFTMAX_WARPS = 8;
constexpr int SOFTMAX_THREADS = SOFTMAX_WARPS * WARP;
constexpr int TILE = 64;
// Eight numbers more than a row has, so that the rows that a matrix is read from begin in different banks of shared memory.
constexpr int STRIDE = DIM + 8;
// Pieces of eight numbers of a tile, and how many of them a thread carries.
constexpr int PIECES = TILE * DIM / 8;
constexpr int CARRIED = (PIECES + SOFTMAX_THREADS - 1) / SOFTMAX_THREADS;
constexpr int SCORE_STEPS = DIM / 16;

struct alignas(16) Piece {
    Element at[8];
};

struct alignas(16) Packed {
    u32 at[4];
};

// Of each batch row and part of the bank (tile t belongs to part t mod gridDim.x): what sampled_partials gives, over the rows of
// the bank but those of the features' own images, `own` [batch], and those whose `excluded` [n] is not 0 (null: none).
extern "C" __global__ void __launch_bounds__(SOFTMAX_THREADS)
    softmax_partials(const float *features, const Element *bank, const unsigned char *excluded, const long long *own,
                     int batch, int n, float logits_per_score, float *largest, float *totals, float *rows) {
    alignas(16) __shared__ u16 tiles[2][TILE][STRIDE];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int group = lane / 4, quarter = lane % 4;
    // The two features whose scores this lane holds.
    const int first = (blockIdx.y * SOFTMAX_WARPS + warp) * 16 + group;
    const int feature[2] = {first, first + 8};

    u32 query[SCORE_STEPS][4];
    long long own_row[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const bool inside = feature[half] < batch;
        own_row[half] = inside ? own[feature[half]] : -1;
        const float *numbers = features + (u64)(inside ? feature[half] : 0) * DIM;
#pragma unroll
        for (int step = 0; step < SCORE_STEPS; step++) {
#pragma unroll
            for (int part = 0; part < 2; part++) {
                int d = step * 16 + part * 8 + quarter * 2;
                query[step][part * 2 + half] = inside ? pack_bf16(numbers[d], numbers[d + 1]) : 0;
            }
        }
    }

    Piece carried[CARRIED];
    auto load = [&](int tile) {
#pragma unroll
        for (int i = 0; i < CARRIED; i++) {
            int piece = i * SOFTMAX_THREADS + threadIdx.x;
            int row = tile * TILE + piece / (DIM / 8);
            carried[i] = Piece{};
            if ((PIECES % SOFTMAX_THREADS == 0 || piece < PIECES) && row < n)
                carried[i] = *(const Piece *)(bank + (u64)row * DIM + piece % (DIM / 8) * 8);
        }
    };
    auto store = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < CARRIED; i++) {
            int piece = i * SOFTMAX_THREADS + threadIdx.x;
            if (PIECES % SOFTMAX_THREADS != 0 && piece >= PIECES) continue;
            Packed packed;
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
#if BANK_BF16
                packed.at[pair] = carried[i].at[2 * pair] | (u32)carried[i].at[2 * pair + 1] << 16;
#else
                packed.at[pair] = pack_bf16(carried[i].at[2 * pair], carried[i].at[2 * pair + 1]);
#endif
            }
            *(Packed *)&tiles[buffer][piece / (DIM / 8)][piece % (DIM / 8) * 8] = packed;
        }
    };

    float sum[DIM / 8][4] = {};
    float top[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {0, 0};
    const int n_tiles = (n + TILE - 1) / TILE;
    int buffer = 0;
    if ((int)blockIdx.x < n_tiles) load(blockIdx.x);
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        // Whoever is behind still reads the other buffer; all have left this one before the last barrier.
        store(buffer);
        __syncthreads();
        if (tile + (int)gridDim.x < n_tiles) load(tile + gridDim.x);

        float score[TILE / 8][4] = {};
#pragma unroll
        for (int step = 0; step < SCORE_STEPS; step++) {
#pragma unroll
            for (int pair = 0; pair < TILE / 16; pair++) {
                u32 b[4];
                load_matrices(b, &tiles[buffer][pair * 16 + lane / 16 * 8 + lane % 8][step * 16 + lane / 8 % 2 * 8]);
                multiply_add(score[2 * pair], query[step], b[0], b[1]);
                multiply_add(score[2 * pair + 1], query[step], b[2], b[3]);
            }
        }

        const bool whole = (tile + 1) * TILE <= n && !excluded;
        float now[2] = {top[0], top[1]};
#pragma unroll
        for (int column = 0; column < TILE / 8; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = tile * TILE + column * 8 + quarter * 2 + i % 2;
                float x = score[column][i] * logits_per_score;
                if (row == own_row[i / 2] || (!whole && (row >= n || (excluded && excluded[row]))))
                    x = MINUS_INFINITY;
                score[column][i] = x;
                now[i / 2] = fmaxf(now[i / 2], x);
            }
        }
        float factor[2], reference[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // The four lanes of a group hold one feature's scores.
            now[half] = fmaxf(now[half], shuffle_xor(now[half], 1));
            now[half] = fmaxf(now[half], shuffle_xor(now[half], 2));
            // Where nothing has counted yet, −∞ less −∞ would be no number.
            reference[half] = now[half] == MINUS_INFINITY ? 0.0f : now[half];
            factor[half] = exp2f(top[half] - reference[half]);
            total[half] *= factor[half];
            top[half] = now[half];
        }
#pragma unroll
        for (int column = 0; column < TILE / 8; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                score[column][i] = exp2f(score[column][i] - reference[i / 2]);
                total[i / 2] += score[column][i];
            }
        }
#pragma unroll
        for (int column = 0; column < DIM / 8; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[column][i] *= factor[i / 2];
        }
        // Scores as they lie in the lanes are the left factor of the next product.
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) {
            const float *low = score[2 * step], *high = score[2 * step + 1];
            u32 weights[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                              pack_bf16(high[2], high[3])};
#pragma unroll
            for (int pair = 0; pair < DIM / 16; pair++) {
                u32 b[4];
                load_matrices_transposed(
                    b, &tiles[buffer][step * 16 + lane / 8 % 2 * 8 + lane % 8][pair * 16 + lane / 16 * 8]);
                multiply_add(sum[2 * pair], weights, b[0], b[1]);
                multiply_add(sum[2 * pair + 1], weights, b[2], b[3]);
            }
        }
        buffer ^= 1;
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += shuffle_xor(total[half], 1);
        total[half] += shuffle_xor(total[half], 2);
        if (feature[half] >= batch) continue;
        const u64 place = (u64)feature[half] * gridDim.x + blockIdx.x;
        if (quarter == 0) {
            largest[place] = top[half];
            totals[place] = total[half];
        }
#pragma unroll
        for (int column = 0; column < DIM / 8; column++) {
            float *numbers = rows + place * DIM + column * 8 + quarter * 2;
            numbers[0] = sum[column][2 * half];
            numbers[1] = sum[column][2 * half + 1];
        }
    }
}
#endif
