/* Reading fatbins; see fatbin.h.
 *
 * Why: a program may ask which of its code a kernel would run (cudaFuncGetAttributes), and CUB of CUDA 13 refuses to launch
 * when the answer is an architecture that it was not compiled for. torch 2.13 has no code for capability 8.9: an L40S and an RTX
 * 4090 run what was made for 8.6.
 *
 * A fatbin is a header and a list of entries, each with a header that says what it is; only what follows that is compressed.
 * Layout: as torch.cuda.get_arch_list() and the entries of torch 2.13's libraries agree. */
#include "bridge/fatbin.h"

#include <stdint.h>
#include <string.h>

static const uint32_t FATBIN_MAGIC = 0xBA55ED50u, WRAPPER_MAGIC = 0x466243B1u;

enum { ENTRY_PTX = 1, ENTRY_CUBIN = 2 };

struct wrapper {
    uint32_t magic, version;
    const void *data;
};

struct header {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t payload_bytes;
};

struct entry {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t payload_bytes;
    uint32_t compressed_bytes, options_at;
    uint16_t minor, major; /* of the format of its code */
    uint32_t architecture;
};

bool hl_bridge_fatbin_versions(const void *image, int capability, int *binary, int *ptx)
{
    struct header header;
    struct entry entry;
    int machine_code = 0, text = 0;

    if (!image)
        return false;
    memcpy(&header, image, sizeof header.magic);
    if (header.magic == WRAPPER_MAGIC)
        return hl_bridge_fatbin_versions(((const struct wrapper *)image)->data, capability, binary, ptx);
    if (header.magic != FATBIN_MAGIC)
        return false;
    memcpy(&header, image, sizeof header);
    const char *at = (const char *)image + header.header_bytes, *end = at + header.payload_bytes;
    while (at + sizeof entry <= end) {
        memcpy(&entry, at, sizeof entry);
        int made_for = (int)entry.architecture;
        /* machine code runs on later minor versions of its own major one, PTX on everything later */
        if (entry.kind == ENTRY_CUBIN && made_for / 10 == capability / 10 && made_for <= capability &&
            made_for > machine_code)
            machine_code = made_for;
        if (entry.kind == ENTRY_PTX && made_for <= capability && made_for > text)
            text = made_for;
        if (entry.header_bytes < sizeof entry || entry.payload_bytes > (uint64_t)(end - at))
            break; /* not a list that we know */
        at += entry.header_bytes + entry.payload_bytes;
    }
    if (!machine_code && !text)
        return false;
    *binary = machine_code ? machine_code : capability; /* PTX is compiled for the device itself */
    *ptx = machine_code ? machine_code : text;
    return true;
}
