/* Names and texts of result codes (csrc/api/errors.toml). */
#ifndef HL_BRIDGE_ERRORS_H
#define HL_BRIDGE_ERRORS_H

typedef struct hl_bridge_error_text {
    int code;
    const char *runtime_name; /* "": the runtime does not know this code */
    const char *driver_name;  /* "": the driver does not know this code */
    const char *text;
} hl_bridge_error_text;

extern const hl_bridge_error_text hl_bridge_errors_cuda[], hl_bridge_errors_cublas[], hl_bridge_errors_nccl[],
    hl_bridge_errors_nvml[];
extern const unsigned hl_bridge_errors_cuda_count, hl_bridge_errors_cublas_count, hl_bridge_errors_nccl_count,
    hl_bridge_errors_nvml_count;

typedef enum hl_bridge_error_table {
    HL_ERRORS_CUDA,
    HL_ERRORS_CUBLAS,
    HL_ERRORS_NCCL,
    HL_ERRORS_NVML
} hl_bridge_error_table;

/* NULL when the table has no such code. */
const hl_bridge_error_text *hl_bridge_error(hl_bridge_error_table table, int code);

#endif
