/* Kernel identity; see modules.h.
 *
 * torch registers tens of thousands of kernels before main(), and looks one up at every launch: registration appends,
 * the look-up reads a hash table without a lock. Names of host stubs are kept as the pointers that nvcc's code gives
 * until the first launch interns them: a library that is unloaded takes its strings along. */
#include "bridge/modules.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bridge/attributes.h"
#include "bridge/fatbin.h"
#include "bridge/process.h"
#include "bridge/slab.h"
#include "core/export.h"
#include "core/ledger.h"

struct hl_bridge_module {
    uint32_t live;
    hl_bridge_image_format format;
    bool registered;    /* by nvcc's start-up code, which owns the image */
    void *image;        /* our copy; NULL for registered ones */
    const void *fatbin; /* the program's, while it is registered */
    hl_bridge_kernel **kernels;
    unsigned count, room;
    char start_up_reads[96]; /* nvcc's start-up code keeps a void** to this object and old ones read through it */
};

struct variable {
    uint32_t live;
    const void *host; /* the host's shadow, or the module for an image's global */
    const char *name;
    size_t size_bytes;
    void *address[HL_DEVICES_MAX];
};

struct table { /* open addressing, host pointer -> kernel; replaced when it grows, the old one stays for its readers */
    size_t mask;
    _Atomic(hl_bridge_kernel *) at[];
};

static hl_bridge_slab kernels = HL_SLAB(hl_bridge_kernel, 1u << 22);
static hl_bridge_slab modules = HL_SLAB(struct hl_bridge_module, 1u << 20);
static hl_bridge_slab variables = HL_SLAB(struct variable, 1u << 20);
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(struct table *) stubs;
static size_t stubs_used;

static size_t slot_of(const struct table *table, const void *host)
{
    return ((uintptr_t)host * UINT64_C(0x9E3779B97F4A7C15) >> 20) & table->mask;
}

static void insert(struct table *table, hl_bridge_kernel *kernel)
{
    for (size_t at = slot_of(table, kernel->host);; at = (at + 1) & table->mask) {
        hl_bridge_kernel *there = atomic_load_explicit(&table->at[at], memory_order_relaxed);
        if (!there)
            stubs_used++;
        if (!there || there->host == kernel->host) { /* a library loaded where another one lay before */
            atomic_store_explicit(&table->at[at], kernel, memory_order_release);
            return;
        }
    }
}

static void grow(void)
{
    struct table *old = stubs;
    size_t size = old ? (old->mask + 1) * 2 : 1u << 14;
    struct table *table = calloc(1, sizeof *table + size * sizeof *table->at);

    if (!table)
        return;
    table->mask = size - 1;
    stubs_used = 0;
    for (size_t i = 0; old && i <= old->mask; i++)
        if (old->at[i])
            insert(table, old->at[i]);
    atomic_store_explicit(&stubs, table, memory_order_release);
}

HL_EXPORT hl_bridge_module *hl_bridge_module_register(const void *fatbin_wrapper)
{
    struct hl_bridge_module *module = hl_bridge_slab_take(&modules);

    if (module) {
        module->fatbin = fatbin_wrapper;
        module->registered = true;
        module->format = HL_IMAGE_FATBIN;
    }
    return module;
}

HL_EXPORT void hl_bridge_module_unregister(hl_bridge_module *module)
{
    if (module)
        module->fatbin = NULL; /* its kernels stay: a launch may be queued */
}

HL_EXPORT void hl_bridge_kernel_register(hl_bridge_module *module, const void *host, const char *name, int threads_max)
{
    hl_bridge_kernel *kernel = hl_bridge_slab_take(&kernels);

    if (!kernel)
        return;
    kernel->host = host;
    kernel->name = name;
    kernel->module = module;
    kernel->threads_max = threads_max > 0 ? threads_max : 0;
    kernel->carveout = -1;
    pthread_mutex_lock(&lock);
    if (!stubs || stubs_used * 2 > stubs->mask)
        grow();
    if (stubs)
        insert(stubs, kernel);
    pthread_mutex_unlock(&lock);
}

HL_EXPORT void hl_bridge_variable_register(hl_bridge_module *module, const void *host, const char *name,
                                           size_t size_bytes)
{
    struct variable *variable = hl_bridge_slab_take(&variables);

    (void)module;
    if (variable) {
        variable->host = host;
        variable->name = name;
        variable->size_bytes = size_bytes;
    }
}

HL_EXPORT hl_bridge_kernel *hl_bridge_kernel_of(const void *function)
{
    struct table *table = atomic_load_explicit(&stubs, memory_order_acquire);

    if (hl_bridge_slab_owns(&kernels, function))
        return (hl_bridge_kernel *)function;
    if (!table)
        return NULL;
    for (size_t at = slot_of(table, function);; at = (at + 1) & table->mask) {
        hl_bridge_kernel *kernel = atomic_load_explicit(&table->at[at], memory_order_acquire);
        if (!kernel || kernel->host == function)
            return kernel;
    }
}

/* Globals are rare and looked up once: a walk over all of them. */
static struct variable *find_variable(const void *host, const char *name)
{
    const struct variable *all = (const struct variable *)variables.base;

    for (uint32_t i = variables.used; i-- > 0;) /* the newest registration of an address counts */
        if (all[i].live && all[i].host == host && (!name || !strcmp(all[i].name, name)))
            return (struct variable *)&all[i];
    return NULL;
}

static CUresult place(struct variable *variable, void **address, size_t *size_bytes)
{
    hl_bridge_context *context;
    CUresult result = hl_bridge_context_use(&context);

    if (result)
        return result;
    pthread_mutex_lock(&lock);
    if (!variable->address[context->device] &&
        hl_ledger_allocate(context->device, HL_MEMORY_DEVICE, variable->size_bytes ? variable->size_bytes : 1,
                           &variable->address[context->device]))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (!result && address)
        *address = variable->address[context->device];
    if (!result && size_bytes)
        *size_bytes = variable->size_bytes;
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT CUresult hl_bridge_variable_address(const void *host, void **address, size_t *size_bytes)
{
    struct variable *variable = find_variable(host, NULL);

    return variable ? place(variable, address, size_bytes) : CUDA_ERROR_NOT_FOUND;
}

static hl_bridge_kernel *add_kernel(struct hl_bridge_module *module, const char *name)
{
    hl_bridge_kernel *kernel;

    if (module->count == module->room) {
        unsigned room = module->room ? module->room * 2 : 4;
        hl_bridge_kernel **grown = realloc(module->kernels, room * sizeof *grown);
        if (!grown)
            return NULL;
        module->kernels = grown;
        module->room = room;
    }
    kernel = hl_bridge_slab_take(&kernels);
    if (!kernel)
        return NULL;
    kernel->module = module;
    kernel->carveout = -1;
    kernel->name = strdup(name); /* never freed: a queued launch may outlive the module */
    kernel->name_kept = true;
    module->kernels[module->count++] = kernel;
    return kernel->name ? kernel : NULL;
}

static void found_kernel(const hl_bridge_cubin_kernel *found, void *user)
{
    hl_bridge_kernel *kernel = add_kernel(user, found->name);

    if (!kernel)
        return;
    kernel->registers = found->registers;
    kernel->threads_max = found->threads_max;
    kernel->shared_bytes = found->shared_bytes;
    kernel->local_bytes = found->local_bytes;
}

HL_EXPORT CUresult hl_bridge_module_load(const void *image, hl_bridge_module **handle)
{
    struct hl_bridge_module *module;
    size_t size;

    if (!image || !handle)
        return CUDA_ERROR_INVALID_VALUE;
    hl_bridge_image_format format = hl_bridge_cubin_format(image);
    if (format == HL_IMAGE_UNKNOWN)
        return CUDA_ERROR_INVALID_IMAGE;
    module = hl_bridge_slab_take(&modules);
    if (!module)
        return CUDA_ERROR_OUT_OF_MEMORY;
    module->format = format;
    size = format == HL_IMAGE_PTX ? strlen(image) + 1 : hl_bridge_cubin_size(image);
    module->image = size ? malloc(size) : NULL;
    if (module->image)
        memcpy(module->image, image, size);
    if (format == HL_IMAGE_CUBIN && (!module->image || !hl_bridge_cubin_kernels(module->image, found_kernel, module))) {
        hl_bridge_slab_give(&modules, module);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    *handle = module;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_module_load_file(const char *path, hl_bridge_module **handle)
{
    CUresult result = CUDA_ERROR_FILE_NOT_FOUND;
    struct stat about;
    int file;

    if (!path || !handle)
        return CUDA_ERROR_INVALID_VALUE;
    file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return result;
    if (!fstat(file, &about) && about.st_size > 0) {
        char *image = calloc(1, (size_t)about.st_size + 1);
        ssize_t got = 0, part = 1;
        while (image && got < about.st_size && part > 0) {
            part = read(file, image + got, (size_t)(about.st_size - got));
            got += part > 0 ? part : 0;
        }
        if (image && got == about.st_size)
            result = hl_bridge_module_load(image, handle);
        free(image);
    }
    close(file);
    return result;
}

HL_EXPORT bool hl_bridge_module_valid(const void *handle) { return hl_bridge_slab_owns(&modules, handle); }

/* Kernel objects stay: a graph may hold launches of an unloaded module. They are small. */
HL_EXPORT CUresult hl_bridge_module_unload(hl_bridge_module *module)
{
    if (!hl_bridge_module_valid(module) || module->registered)
        return CUDA_ERROR_INVALID_HANDLE;
    free(module->image);
    free(module->kernels);
    hl_bridge_slab_give(&modules, module);
    return CUDA_SUCCESS;
}

/* ".entry NAME(" in PTX text. */
static bool ptx_has_entry(const char *text, const char *name)
{
    size_t length = strlen(name);

    for (const char *at = text; (at = strstr(at, ".entry")); at += 6) {
        const char *begin = at + 6 + strspn(at + 6, " \t\r\n");
        if (!strncmp(begin, name, length) && strchr(" \t\r\n(", begin[length]))
            return true;
    }
    return false;
}

HL_EXPORT CUresult hl_bridge_module_kernel(hl_bridge_module *module, const char *name, hl_bridge_kernel **kernel)
{
    CUresult result = CUDA_SUCCESS;
    hl_bridge_kernel *found = NULL;

    if (!name || !kernel)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hl_bridge_module_valid(module))
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < module->count && !found; i++)
        if (!strcmp(module->kernels[i]->name, name))
            found = module->kernels[i];
    if (!found &&
        (module->format == HL_IMAGE_CUBIN || (module->format == HL_IMAGE_PTX && !ptx_has_entry(module->image, name))))
        result = CUDA_ERROR_NOT_FOUND;
    else if (!found) /* a compressed fatbin: the name cannot be checked */
        found = add_kernel(module, name);
    pthread_mutex_unlock(&lock);
    if (!result && !found)
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (!result)
        *kernel = found;
    return result;
}

HL_EXPORT CUresult hl_bridge_module_global(hl_bridge_module *module, const char *name, void **address,
                                           size_t *size_bytes)
{
    struct variable *variable;
    size_t size;

    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hl_bridge_module_valid(module))
        return CUDA_ERROR_INVALID_HANDLE;
    variable = find_variable(module, name);
    if (!variable) {
        if (module->format != HL_IMAGE_CUBIN || !hl_bridge_cubin_global(module->image, name, &size))
            return CUDA_ERROR_NOT_FOUND;
        variable = hl_bridge_slab_take(&variables);
        if (!variable)
            return CUDA_ERROR_OUT_OF_MEMORY;
        variable->host = module;
        variable->name = strdup(name);
        variable->size_bytes = size;
    }
    return place(variable, address, size_bytes);
}

HL_EXPORT CUresult hl_bridge_module_list(hl_bridge_module *module, hl_bridge_kernel **list, unsigned *count)
{
    if (!hl_bridge_module_valid(module))
        return CUDA_ERROR_INVALID_HANDLE;
    if (module->format != HL_IMAGE_CUBIN)
        return CUDA_ERROR_NOT_SUPPORTED;
    for (unsigned i = 0; list && i < *count && i < module->count; i++)
        list[i] = module->kernels[i];
    if (!list)
        *count = module->count;
    return CUDA_SUCCESS;
}

static int attribute(uint32_t device, CUdevice_attribute which)
{
    int value = 0;

    return hl_bridge_attributes_get(device, which, &value) ? value : 0;
}

static int dynamic_shared_limit(const hl_bridge_kernel *kernel, uint32_t device)
{
    if (kernel->dynamic_shared_max_bytes)
        return kernel->dynamic_shared_max_bytes;
    return attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK) - (int)kernel->shared_bytes;
}

/* Of the code that the device runs; the device's own where it is not known, as for PTX that is compiled for it. */
static int version_of(const hl_bridge_module *module, CUfunction_attribute which, int capability)
{
    int binary = capability, ptx = capability;

    if (module)
        hl_bridge_fatbin_versions(module->fatbin ? module->fatbin : module->image, capability, &binary, &ptx);
    return which == CU_FUNC_ATTRIBUTE_PTX_VERSION ? ptx : binary;
}

HL_EXPORT CUresult hl_bridge_kernel_attribute(hl_bridge_kernel *kernel, CUfunction_attribute which, uint32_t device,
                                              int *value)
{
    int capability = attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) * 10 +
                     attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    int threads = kernel->threads_max ? kernel->threads_max : 1024;
    int registers_block = attribute(device, CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK);

    switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        /* A kernel without launch bounds is limited by its registers, in warps. */
        *value = threads;
        if (kernel->registers && registers_block / kernel->registers < threads)
            *value = registers_block / kernel->registers / 32 * 32;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        /* Not known for compressed fatbins: what a kernel with these launch bounds may have at most. */
        *value = kernel->registers                 ? kernel->registers
                 : registers_block / threads > 255 ? 255
                                                   : registers_block / threads;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = (int)kernel->shared_bytes; return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = (int)kernel->local_bytes; return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES: *value = 0; return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = version_of(kernel->module, which, capability); return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA: *value = 0; return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = dynamic_shared_limit(kernel, device);
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *value = kernel->carveout; return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
        *value = kernel->cluster_non_portable;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE: *value = 0; return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
}

HL_EXPORT CUresult hl_bridge_kernel_set_attribute(hl_bridge_kernel *kernel, CUfunction_attribute which, uint32_t device,
                                                  int value)
{
    int optin = attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);

    switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        if (value < 0 || value + (int)kernel->shared_bytes > optin)
            return CUDA_ERROR_INVALID_VALUE;
        kernel->dynamic_shared_max_bytes = value;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        if (value < -1 || value > 100)
            return CUDA_ERROR_INVALID_VALUE;
        kernel->carveout = value;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
        kernel->cluster_non_portable = value != 0;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        return CUDA_SUCCESS; /* shapes the schedule on the card, which the predictor knows as measured times */
    default: return CUDA_ERROR_INVALID_VALUE;
    }
}
