// The instructions behind kernels.cu, for an NVIDIA GPU of compute capability 8.0 or later.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

template <class Number>
__device__ inline Number shuffle_xor(Number value, int distance) {
    return __shfl_xor_sync(0xffffffffu, value, distance);
}

__device__ inline int shuffle_up(int value, int distance) { return __shfl_up_sync(0xffffffffu, value, distance); }

// Two numbers rounded to bf16, `low` in the lower half.
__device__ inline u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// c += a·b, 16×16 by 16×8.
__device__ inline void multiply_add(float c[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8×8 matrices of 16-bit numbers from shared memory; lane l names row l mod 8 of matrix l / 8.
__device__ inline void load_matrices(u32 b[4], const u16 *row) {
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void load_matrices_transposed(u32 b[4], const u16 *row) {
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(address)
                 : "memory");
}
