/* Look-up of a result code's name and text; see errors.h. */
#include "bridge/errors.h"

#include <stddef.h>

#include "core/export.h"

HL_EXPORT const hl_bridge_error_text *hl_bridge_error(hl_bridge_error_table table, int code)
{
    const struct {
        const hl_bridge_error_text *rows;
        unsigned count;
    } tables[] = {[HL_ERRORS_CUDA] = {hl_bridge_errors_cuda, hl_bridge_errors_cuda_count},
                  [HL_ERRORS_CUBLAS] = {hl_bridge_errors_cublas, hl_bridge_errors_cublas_count},
                  [HL_ERRORS_NCCL] = {hl_bridge_errors_nccl, hl_bridge_errors_nccl_count},
                  [HL_ERRORS_NVML] = {hl_bridge_errors_nvml, hl_bridge_errors_nvml_count}};
    const hl_bridge_error_text *rows = tables[table].rows;

    for (unsigned i = 0; i < tables[table].count; i++)
        if (rows[i].code == code)
            return &rows[i];
    return NULL;
}
