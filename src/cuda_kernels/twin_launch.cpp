// The twin's way in, compiled behind kernels.cu: false for a kernel that there is not.
extern "C" bool launch(const char *name, unsigned x, unsigned y, unsigned threads, void **arguments) {
#define KERNEL(kernel) \
    if (!strcmp(name, #kernel)) return run_grid(call_of(kernel, arguments), x, y, threads), true
    KERNEL(draw_uniform);
    KERNEL(nce_partials);
    KERNEL(sampled_partials);
    KERNEL(update_rows);
#if DIM % 16 == 0 && DIM <= 128
    KERNEL(softmax_partials);
#endif
    return false;
}
