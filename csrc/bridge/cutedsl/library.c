/* Loading what a compiled CuTe program holds, once a process.
 *
 * A program keeps one pointer of state, null at first, and hands over two functions of its own: one that loads its kernels,
 * and one that makes them known to a device. Arguments are those of the DSL's compiler (cutlass_dsl/tvm_ffi_provider.py in
 * nvidia-cutlass-dsl 4.8: four pointers to an int; one pointer); that the functions take the state, and the state and a
 * device, was seen with vLLM 0.32's FlashAttention 4. */
#include <cuda_runtime_api.h>
#include <pthread.h>

#include "bridge/stub.h"

typedef int load_kernels(void **state);
typedef int load_to_device(void **state, int device);
typedef void set_error(const char *kind, const char *text);

HL_API int cuda_dialect_init_library_once(void **state, load_kernels *load, load_to_device *to_device, set_error *error);
HL_API void cuda_dialect_unload_library_once(void **state);
HL_API const char *cuda_dialect_get_error_name(int error);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int loaded(void **state, load_kernels *load, load_to_device *to_device)
{
    int devices = 0, result = load(state);

    if (result || !to_device)
        return result;
    result = (int)cudaGetDeviceCount(&devices);
    for (int device = 0; device < devices && !result; device++)
        result = to_device(state, device);
    return result;
}

int cuda_dialect_init_library_once(void **state, load_kernels *load, load_to_device *to_device, set_error *error)
{
    int result = 0;

    if (!state || !load)
        return -1;
    pthread_mutex_lock(&lock);
    if (!*state) {
        void *made = NULL;
        result = loaded(&made, load, to_device);
        if (!result)
            *state = made;
    }
    pthread_mutex_unlock(&lock);
    if (result && error)
        error("RuntimeError", cudaGetErrorName((cudaError_t)result));
    return result ? -1 : 0;
}

/* Called when the program goes: its kernels have names only, and those may be in use by graphs that are still there. */
void cuda_dialect_unload_library_once(void **state)
{
    if (state)
        *state = NULL;
}

const char *cuda_dialect_get_error_name(int error)
{
    return cudaGetErrorName((cudaError_t)error);
}
