/* NVML: which devices a host has, before anybody touches CUDA.
 *
 * NVML numbers all devices of the run; CUDA_VISIBLE_DEVICES does not concern it. What the device profile has no fact
 * for (clocks, temperatures, NVLink) is unsupported rather than invented. */
#include "bridge/nvml/nvml_abi.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "bridge/attributes.h"
#include "bridge/errors.h"
#include "bridge/stub.h"
#include "core/ledger.h"
#include "core/report.h"

static _Atomic int users;

static uint32_t number_of(nvmlDevice_t device) { return (uint32_t)((uintptr_t)device - 1); }

static nvmlReturn_t start(void)
{
    if (!hl_device_count())
        hl_report_fatal(
            "this program asks for GPUs but takes part in no run: start it with `hyperlapse run -- COMMAND`");
    users++;
    return NVML_SUCCESS;
}

static nvmlReturn_t check(nvmlDevice_t device, const void *out)
{
    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    return device && number_of(device) < hl_device_count() && out ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

static nvmlReturn_t put_text(char *out, unsigned length, const char *text)
{
    if (strlen(text) >= length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(out, text);
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlInit_v2(void) { return start(); }

HL_API nvmlReturn_t nvmlInit(void) { return start(); }

HL_API nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
    (void)flags; /* "no GPUs is no error" and "attach to none": there always is one */
    return start();
}

HL_API nvmlReturn_t nvmlShutdown(void)
{
    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    users--;
    return NVML_SUCCESS;
}

HL_API const char *nvmlErrorString(nvmlReturn_t result)
{
    const hl_bridge_error_text *row = hl_bridge_error(HL_ERRORS_NVML, (int)result);

    return row ? row->text : "Unknown Error";
}

HL_API nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    return version ? put_text(version, length, hl_device_facts_of(0)->driver_text) : NVML_ERROR_INVALID_ARGUMENT;
}

HL_API nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    char text[48];

    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    if (!version)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(text, sizeof text, "%d.%s", hl_device_facts_of(0)->driver_version / 1000,
             hl_device_facts_of(0)->driver_text);
    return put_text(version, length, text);
}

/* Confidential computing is off, as on every host that was not set up for it: all zeros. */

HL_API nvmlReturn_t nvmlSystemGetConfComputeState(nvmlConfComputeSystemState_t *state)
{
    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    if (!state)
        return NVML_ERROR_INVALID_ARGUMENT;
    *state = (nvmlConfComputeSystemState_t){0};
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlSystemGetConfComputeSettings(nvmlSystemConfComputeSettings_t *settings)
{
    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    if (!settings)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (settings->version != HL_NVML_CONF_COMPUTE_SETTINGS_V1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    *settings = (nvmlSystemConfComputeSettings_t){.version = settings->version};
    return NVML_SUCCESS;
}

static nvmlReturn_t cuda_version(int *version)
{
    if (!version)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!hl_device_count()) /* this one works before nvmlInit */
        return NVML_ERROR_DRIVER_NOT_LOADED;
    *version = hl_device_facts_of(0)->driver_version;
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { return cuda_version(version); }

HL_API nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) { return cuda_version(version); }

/* --- devices --- */

static nvmlReturn_t count_devices(unsigned *count)
{
    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = hl_device_count();
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) { return count_devices(count); }

HL_API nvmlReturn_t nvmlDeviceGetCount(unsigned *count) { return count_devices(count); }

static nvmlReturn_t by_index(unsigned index, nvmlDevice_t *device)
{
    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    if (!device || index >= hl_device_count())
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = (nvmlDevice_t)(uintptr_t)(index + 1);
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
    return by_index(index, device);
}

HL_API nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *device) { return by_index(index, device); }

HL_API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    char text[48];

    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    if (!uuid || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < hl_device_count(); i++) {
        hl_bridge_attributes_uuid_text(i, text);
        if (!strcmp(text, uuid))
            return by_index(i, device);
    }
    return NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t by_pci(const char *bus_id, nvmlDevice_t *device)
{
    unsigned domain, bus, slot, function = 0;

    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    if (!bus_id || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (sscanf(bus_id, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < hl_device_count(); i++)
        if (!domain && !slot && bus == (unsigned)hl_device_facts_of(i)->pci_bus_first + i)
            return by_index(i, device);
    return NVML_ERROR_NOT_FOUND;
}

HL_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    return by_pci(bus_id, device);
}

HL_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device)
{
    return by_pci(bus_id, device);
}

HL_API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index)
{
    nvmlReturn_t result = check(device, index);

    if (!result)
        *index = number_of(device);
    return result;
}

HL_API nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *minor)
{
    return nvmlDeviceGetIndex(device, minor); /* /dev/nvidiaN */
}

HL_API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length)
{
    nvmlReturn_t result = check(device, name);

    return result ? result : put_text(name, length, hl_device_facts_of(number_of(device))->name);
}

HL_API nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, int *brand)
{
    nvmlReturn_t result = check(device, brand);

    if (!result)
        *brand = strstr(hl_device_facts_of(number_of(device))->name, "GeForce") ? NVML_BRAND_GEFORCE
                 : strstr(hl_device_facts_of(number_of(device))->name, "RTX")   ? NVML_BRAND_NVIDIA_RTX
                                                                                : NVML_BRAND_NVIDIA;
    return result;
}

HL_API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length)
{
    nvmlReturn_t result = check(device, uuid);
    char text[48];

    if (result)
        return result;
    hl_bridge_attributes_uuid_text(number_of(device), text);
    return put_text(uuid, length, text);
}

HL_API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    nvmlReturn_t result = check(device, major && minor ? major : NULL);

    if (!result) {
        *major = hl_device_facts_of(number_of(device))->compute_major;
        *minor = hl_device_facts_of(number_of(device))->compute_minor;
    }
    return result;
}

HL_API nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned *architecture)
{
    nvmlReturn_t result = check(device, architecture);

    if (result)
        return result;
    const hl_device_facts *facts = hl_device_facts_of(number_of(device));
    int capability = facts->compute_major * 10 + facts->compute_minor;
    /* NVML_DEVICE_ARCH_*: Volta 5, Turing 6, Ampere 7, Ada 8, Hopper 9, Blackwell 10 */
    *architecture = capability >= 100  ? 10
                    : capability >= 90 ? 9
                    : capability == 89 ? 8
                    : capability >= 80 ? 7
                    : capability == 75 ? 6
                    : capability >= 70 ? 5
                                       : UINT32_MAX;
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, int *mode)
{
    nvmlReturn_t result = check(device, mode);

    if (!result)
        *mode = NVML_FEATURE_ENABLED; /* as on every server that runs nvidia-persistenced */
    return result;
}

HL_API nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending)
{
    nvmlReturn_t result = check(device, current && pending ? current : NULL);

    if (!result)
        *current = *pending = 0;
    return result;
}

/* --- memory --- */

/* As on the card: the first version counts what is reserved as used, the second tells it apart. */
HL_API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    nvmlReturn_t result = check(device, memory);
    size_t free_bytes, total_bytes;

    if (result)
        return result;
    hl_ledger_info(number_of(device), &free_bytes, &total_bytes);
    memory->total = (unsigned long long)hl_device_facts_of(number_of(device))->nvml_total_bytes;
    memory->free = free_bytes;
    memory->used = memory->total - memory->free;
    return NVML_SUCCESS;
}

/* What CUDA does not get to see of the card's memory is NVML's "reserved". */
HL_API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    nvmlReturn_t result = check(device, memory);
    size_t free_bytes, total_bytes;

    if (result)
        return result;
    if (memory->version != (sizeof *memory | 2u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    hl_ledger_info(number_of(device), &free_bytes, &total_bytes);
    memory->total = (unsigned long long)hl_device_facts_of(number_of(device))->nvml_total_bytes;
    memory->reserved = memory->total - total_bytes;
    memory->used = total_bytes - free_bytes;
    memory->free = free_bytes;
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlDeviceGetMemoryBusWidth(nvmlDevice_t device, unsigned *bits)
{
    nvmlReturn_t result = check(device, bits);

    if (!result)
        *bits = (unsigned)hl_device_facts_of(number_of(device))->memory_bus_bits;
    return result;
}

/* Only the calling process is listed: the ledger gives no other process's share to anybody but its owner. */
static nvmlReturn_t one_process(nvmlDevice_t device, unsigned *count, void *list, unsigned long long *used)
{
    nvmlReturn_t result = check(device, count);
    unsigned room;

    if (result)
        return result;
    room = *count;
    *used = hl_ledger_process_bytes(number_of(device));
    *count = *used ? 1 : 0;
    if (*count > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    return *count && !list ? NVML_ERROR_INVALID_ARGUMENT : NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned *count,
                                                         nvmlProcessInfo_v1_t *list)
{
    unsigned long long used;
    nvmlReturn_t result = one_process(device, count, list, &used);

    if (!result && *count)
        list[0] = (nvmlProcessInfo_v1_t){.pid = (unsigned)getpid(), .usedGpuMemory = used};
    return result;
}

static nvmlReturn_t processes(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *list)
{
    unsigned long long used;
    nvmlReturn_t result = one_process(device, count, list, &used);

    if (!result && *count)
        list[0] = (nvmlProcessInfo_t){.pid = (unsigned)getpid(),
                                      .usedGpuMemory = used,
                                      .gpuInstanceId = UINT32_MAX,
                                      .computeInstanceId = UINT32_MAX};
    return result;
}

HL_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned *count,
                                                            nvmlProcessInfo_t *list)
{
    return processes(device, count, list);
}

HL_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                            nvmlProcessInfo_t *list)
{
    return processes(device, count, list);
}

/* --- where the device sits --- */

static nvmlReturn_t pci(nvmlDevice_t device, nvmlPciInfo_t *info)
{
    nvmlReturn_t result = check(device, info);

    if (result)
        return result;
    memset(info, 0, sizeof *info);
    hl_bridge_attributes_pci_text(number_of(device), info->busIdLegacy);
    snprintf(info->busId, sizeof info->busId, "0000%.15s", info->busIdLegacy);
    info->bus = (unsigned)hl_device_facts_of(number_of(device))->pci_bus_first + number_of(device);
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *info) { return pci(device, info); }

HL_API nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *info) { return pci(device, info); }

HL_API nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *info) { return pci(device, info); }

HL_API nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t first, nvmlDevice_t second, int capability, int *status)
{
    nvmlReturn_t result = check(first, status);

    if (!result)
        result = check(second, status);
    if (!result && (capability < 0 || capability > 4))
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result)
        return result;
    bool over_links = capability == NVML_P2P_CAPS_INDEX_NVLINK || capability == NVML_P2P_CAPS_INDEX_ATOMICS;
    uint32_t one = number_of(first), other = number_of(second);
    bool reachable = over_links ? hl_bridge_attributes_linked(one, other) : hl_bridge_attributes_peers(one, other);
    *status = reachable || one == other ? NVML_P2P_STATUS_OK : NVML_P2P_STATUS_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

/* --- NVLink: every link ends at a switch, as on the boards of eight devices that the profiles with links describe --- */

static nvmlReturn_t link_of(nvmlDevice_t device, unsigned link, const void *out)
{
    nvmlReturn_t result = check(device, out);

    if (!result && link >= NVML_NVLINK_MAX_LINKS)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (!result && !hl_device_facts_of(number_of(device))->nvlink_links)
        result = NVML_ERROR_NOT_SUPPORTED;
    return result;
}

/* One device has a board without a switch here: its links lead nowhere. */
static bool link_active(nvmlDevice_t device, unsigned link)
{
    return hl_device_count() > 1 && link < (unsigned)hl_device_facts_of(number_of(device))->nvlink_links;
}

/* The switches of a host join its devices since Hopper ("State: Completed" of nvidia-smi on HGX H100, Fabric Manager's user
 * guide); the cluster's number is zero where no NVLink leaves the host, which is what programs look at. Before Hopper the
 * driver knows of no fabric. */
static nvmlReturn_t fabric(nvmlDevice_t device, nvmlGpuFabricInfo_t *info)
{
    nvmlReturn_t result = check(device, info);

    if (result)
        return result;
    const hl_device_facts *facts = hl_device_facts_of(number_of(device));
    bool joined = facts->nvlink_links > 0 && facts->compute_major >= 9;
    memset(info, 0, sizeof *info);
    info->state = joined ? NVML_GPU_FABRIC_STATE_COMPLETED : NVML_GPU_FABRIC_STATE_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *info)
{
    return fabric(device, info);
}

HL_API nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfo_v3_t *info)
{
    nvmlGpuFabricInfo_t found;
    nvmlReturn_t result = fabric(device, info ? &found : NULL);

    if (result)
        return result;
    if (info->version != (sizeof(nvmlGpuFabricInfo_v2_t) | 2u << 24) &&
        info->version != (sizeof(nvmlGpuFabricInfo_v3_t) | 3u << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memcpy(info->clusterUuid, found.clusterUuid, sizeof info->clusterUuid);
    info->status = found.status;
    info->cliqueId = found.cliqueId;
    info->state = found.state;
    info->healthMask = 0; /* every part of it: not supported */
    if (info->version >> 24 == 3)
        info->healthSummary = 0;
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned link, int *active)
{
    nvmlReturn_t result = link_of(device, link, active);

    if (!result)
        *active = link_active(device, link);
    return result;
}

HL_API nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned link, unsigned *version)
{
    nvmlReturn_t result = link_of(device, link, version);

    if (!result)
        *version = (unsigned)hl_device_facts_of(number_of(device))->nvlink_version;
    return result;
}

HL_API nvmlReturn_t nvmlDeviceGetNvLinkCapability(nvmlDevice_t device, unsigned link, int capability, unsigned *value)
{
    nvmlReturn_t result = link_of(device, link, value);

    if (!result && (capability < 0 || capability > NVML_NVLINK_CAP_VALID))
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (!result)
        *value = link_active(device, link) && capability != NVML_NVLINK_CAP_SLI_BRIDGE;
    return result;
}

HL_API nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned link, int *type)
{
    nvmlReturn_t result = link_of(device, link, type);

    if (!result)
        *type = link_active(device, link) ? NVML_NVLINK_DEVICE_TYPE_SWITCH : NVML_NVLINK_DEVICE_TYPE_UNKNOWN;
    return result;
}

HL_API nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned link, nvmlPciInfo_t *info)
{
    nvmlReturn_t result = link_of(device, link, info);

    if (!result && !link_active(device, link))
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result)
        return result;
    memset(info, 0, sizeof *info);
    info->bus = 0xC0; /* one switch, on a bus behind those of the devices */
    snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "0000:C0:00.0");
    snprintf(info->busId, sizeof info->busId, "00000000:C0:00.0");
    return NVML_SUCCESS;
}

HL_API nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t first, nvmlDevice_t second, int *level)
{
    nvmlReturn_t result = check(first, level);

    if (!result)
        result = check(second, level);
    if (!result)
        *level = first == second ? 0 : NVML_TOPOLOGY_SYSTEM;
    return result;
}
