/* Handles and names of matrix multiplications; see gemm.h.
 *
 * The name of a launch lives as long as the process, so names are made once and kept in a small table: a program uses
 * few combinations of types. */
#include "bridge/gemm.h"

#include <library_types.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "bridge/graph.h"
#include "bridge/slab.h"
#include "core/export.h"
#include "core/ledger.h"

static hl_bridge_slab handles = HL_SLAB(hl_bridge_blas, 1u << 16);

HL_EXPORT hl_bridge_blas *hl_bridge_blas_create(CUresult *context_result)
{
    hl_bridge_context *context;

    *context_result = hl_bridge_context_use(&context);
    return *context_result ? NULL : hl_bridge_slab_take(&handles);
}

HL_EXPORT void hl_bridge_blas_destroy(hl_bridge_blas *handle) { hl_bridge_slab_give(&handles, handle); }

HL_EXPORT bool hl_bridge_blas_valid(const hl_bridge_blas *handle) { return hl_bridge_slab_owns(&handles, handle); }

static const char *type_name(int type)
{
    switch (type) {
    case CUDA_R_16BF: return "bf16";
    case CUDA_R_16F: return "f16";
    case CUDA_R_32F: return "f32";
    case CUDA_R_64F: return "f64";
    case CUDA_C_32F: return "c32";
    case CUDA_C_64F: return "c64";
    case CUDA_R_8I: return "i8";
    case CUDA_R_8U: return "u8";
    case CUDA_R_32I: return "i32";
    case CUDA_R_8F_E4M3: return "e4m3";
    case CUDA_R_8F_E5M2: return "e5m2";
#if CUDART_VERSION >= 12080 || CUDA_VERSION >= 12080
    case CUDA_R_4F_E2M1: return "e2m1";
#endif
    default: return NULL;
    }
}

static const char *compute_name(int compute)
{
    switch (compute) {
    case HL_COMPUTE_16F:
    case HL_COMPUTE_16F_PEDANTIC: return "f16";
    case HL_COMPUTE_32F:
    case HL_COMPUTE_32F_PEDANTIC: return "f32";
    case HL_COMPUTE_32F_FAST_16F: return "f32_as_f16";
    case HL_COMPUTE_32F_FAST_16BF: return "f32_as_bf16";
    case HL_COMPUTE_32F_FAST_TF32: return "tf32";
    case HL_COMPUTE_64F:
    case HL_COMPUTE_64F_PEDANTIC: return "f64";
    case HL_COMPUTE_32I:
    case HL_COMPUTE_32I_PEDANTIC: return "i32";
    default: return NULL;
    }
}

static const char *name_of(const hl_bridge_gemm *gemm)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        int a, b, d, compute;
        char name[48];
    } kept[256];
    static unsigned count;
    const char *a = type_name(gemm->a_type), *b = type_name(gemm->b_type), *d = type_name(gemm->d_type);
    const char *compute = compute_name(gemm->compute), *name = NULL;

    if (!a || !b || !d || !compute)
        return NULL;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < count && !name; i++)
        if (kept[i].a == gemm->a_type && kept[i].b == gemm->b_type && kept[i].d == gemm->d_type &&
            kept[i].compute == gemm->compute)
            name = kept[i].name;
    if (!name && count < sizeof kept / sizeof *kept) {
        kept[count].a = gemm->a_type;
        kept[count].b = gemm->b_type;
        kept[count].d = gemm->d_type;
        kept[count].compute = gemm->compute;
        snprintf(kept[count].name, sizeof kept[count].name, "%s,%s,%s,%s", a, b, d, compute);
        name = kept[count++].name;
    }
    pthread_mutex_unlock(&lock);
    return name;
}

HL_EXPORT CUresult hl_bridge_gemm_launch(const hl_bridge_gemm *gemm, hl_bridge_stream *stream)
{
    hl_launch launch = {.kind = HL_LAUNCH_GEMM,
                        .device = stream->device,
                        .name = name_of(gemm),
                        .arg = {gemm->m, gemm->n, gemm->k, gemm->batch, gemm->a_transposed, gemm->b_transposed}};

    if (!launch.name)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!gemm->m || !gemm->n || !gemm->batch)
        return CUDA_SUCCESS;
    CUresult result = hl_bridge_graph_work(stream);
    if (!result && hl_ledger_driver_take(stream->device, HL_DRIVER_PRODUCT, 1))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (!result)
        hl_timeline_launch(stream->line, &launch);
    return result;
}
