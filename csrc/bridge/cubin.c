/* Reading cubins; see cubin.h.
 *
 * A cubin is an ELF file. The code of kernel K is the section ".text.K"; its static shared memory is the size of
 * ".nv.shared.K", less the kilobyte that the driver reserves where ".nv.shared.reserved.0" says so (compute capability
 * 9.0). ".nv.info" is a list of attributes for all kernels, of which two are read, each a symbol and a value: registers
 * (0x2f; before capability 9.0 they stand in the upper byte of sh_info) and stack frame (0x11). ".nv.info.K" has the
 * launch bounds (0x05 for .maxntid, 0x10 for .reqntid). Checked against what `ptxas -v` of CUDA 12.8 and 12.9 prints
 * for Triton 3.6's kernels and for hand-written ones (sm_80, sm_90).
 *
 * Inductor and Triton choose block sizes by these numbers, so they must be the real ones. Fatbins of the libraries are
 * compressed and are not opened: nobody asked for their registers (docs/limitations.md). */
#include "bridge/cubin.h"

#include <elf.h>
#include <string.h>

enum {
    INFO_FORMAT_VALUE32 = 4, /* EIFMT_SVAL: a size, then that many bytes */
    INFO_MAX_THREADS = 0x05,
    INFO_REQUIRED_THREADS = 0x10,
    INFO_FRAME_SIZE = 0x11,
    INFO_REGISTERS = 0x2f,
    RESERVED_SHARED_BYTES = 1024,
    MACHINE_CUDA = 190, /* EM_CUDA */
};

static const uint32_t FATBIN_MAGIC = 0xBA55ED50u, FATBIN_WRAPPER_MAGIC = 0x466243B1u;

struct fatbin_header {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t payload_bytes;
};

hl_bridge_image_format hl_bridge_cubin_format(const void *image)
{
    uint32_t magic;

    memcpy(&magic, image, sizeof magic);
    if (!memcmp(image, ELFMAG, SELFMAG))
        return ((const Elf64_Ehdr *)image)->e_machine == MACHINE_CUDA ? HL_IMAGE_CUBIN : HL_IMAGE_UNKNOWN;
    if (magic == FATBIN_MAGIC || magic == FATBIN_WRAPPER_MAGIC)
        return HL_IMAGE_FATBIN;
    for (const char *at = image; *at; at++) { /* PTX is text that begins with comments and .version */
        if (*at == '.')
            return !strncmp(at, ".version", 8) ? HL_IMAGE_PTX : HL_IMAGE_UNKNOWN;
        if (*at == '/')
            at = strchr(at, '\n') ? strchr(at, '\n') : at + strlen(at) - 1;
        else if (*at != '\n' && *at != ' ' && *at != '\t' && *at != '\r')
            return HL_IMAGE_UNKNOWN;
    }
    return HL_IMAGE_UNKNOWN;
}

size_t hl_bridge_cubin_size(const void *image)
{
    const Elf64_Ehdr *elf = image;
    const struct fatbin_header *fatbin = image;
    size_t end;

    if (fatbin->magic == FATBIN_MAGIC)
        return fatbin->header_bytes + fatbin->payload_bytes;
    if (memcmp(elf->e_ident, ELFMAG, SELFMAG) || elf->e_ident[EI_CLASS] != ELFCLASS64)
        return 0;
    end = elf->e_shoff + (size_t)elf->e_shnum * elf->e_shentsize;
    if (elf->e_phnum && elf->e_phoff + (size_t)elf->e_phnum * elf->e_phentsize > end)
        end = elf->e_phoff + (size_t)elf->e_phnum * elf->e_phentsize;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)((const char *)image + elf->e_shoff);
    for (unsigned i = 0; i < elf->e_shnum; i++)
        if (sections[i].sh_type != SHT_NOBITS && sections[i].sh_offset + sections[i].sh_size > end)
            end = sections[i].sh_offset + sections[i].sh_size;
    return end;
}

struct view {
    const char *image;
    const Elf64_Shdr *sections;
    unsigned count;
    const char *names;
};

static bool open_view(const void *image, struct view *view)
{
    const Elf64_Ehdr *elf = image;

    if (hl_bridge_cubin_format(image) != HL_IMAGE_CUBIN || !elf->e_shnum || elf->e_shstrndx >= elf->e_shnum)
        return false;
    view->image = image;
    view->sections = (const Elf64_Shdr *)(view->image + elf->e_shoff);
    view->count = elf->e_shnum;
    view->names = view->image + view->sections[elf->e_shstrndx].sh_offset;
    return true;
}

static const Elf64_Shdr *section(const struct view *view, const char *prefix, const char *suffix)
{
    size_t length = strlen(prefix);

    for (unsigned i = 0; i < view->count; i++) {
        const char *name = view->names + view->sections[i].sh_name;
        if (!strncmp(name, prefix, length) && !strcmp(name + length, suffix))
            return &view->sections[i];
    }
    return NULL;
}

/* Attribute records: format, attribute, then two bytes of value or size; only the sized format carries more. */
static const uint32_t *info_value(const struct view *view, const Elf64_Shdr *info, int attribute, uint32_t symbol)
{
    const uint8_t *at = (const uint8_t *)view->image + info->sh_offset, *end = at + info->sh_size;

    while (at + 4 <= end) {
        uint16_t bytes;
        memcpy(&bytes, at + 2, 2);
        if (at[0] == INFO_FORMAT_VALUE32) {
            const uint32_t *value = (const uint32_t *)(at + 4);
            if (at[1] == attribute && (symbol == UINT32_MAX || *value == symbol))
                return value;
            at += bytes;
        }
        at += 4;
    }
    return NULL;
}

static const Elf64_Sym *symbols_of(const struct view *view, size_t *count, const char **strings)
{
    for (unsigned i = 0; i < view->count; i++) {
        const Elf64_Shdr *table = &view->sections[i];
        if (table->sh_type != SHT_SYMTAB || table->sh_link >= view->count)
            continue;
        *count = table->sh_size / sizeof(Elf64_Sym);
        *strings = view->image + view->sections[table->sh_link].sh_offset;
        return (const Elf64_Sym *)(view->image + table->sh_offset);
    }
    *count = 0;
    return NULL;
}

static uint32_t symbol_index(const struct view *view, const char *name)
{
    const char *strings;
    size_t count;
    const Elf64_Sym *symbols = symbols_of(view, &count, &strings);

    for (size_t i = 0; i < count; i++)
        if (ELF64_ST_TYPE(symbols[i].st_info) == STT_FUNC && !strcmp(strings + symbols[i].st_name, name))
            return (uint32_t)i;
    return UINT32_MAX - 1;
}

bool hl_bridge_cubin_kernels(const void *image, void (*found)(const hl_bridge_cubin_kernel *kernel, void *user),
                             void *user)
{
    static const char PREFIX[] = ".text.";
    struct view view;

    if (!open_view(image, &view))
        return false;
    const Elf64_Shdr *info_all = section(&view, ".nv.info", "");
    uint32_t reserved = section(&view, ".nv.shared.reserved.0", "") ? RESERVED_SHARED_BYTES : 0;
    for (unsigned i = 0; i < view.count; i++) {
        const char *name = view.names + view.sections[i].sh_name;
        hl_bridge_cubin_kernel kernel = {.registers = (int)(view.sections[i].sh_info >> 24)};

        if (strncmp(name, PREFIX, sizeof PREFIX - 1))
            continue;
        kernel.name = name + sizeof PREFIX - 1;
        const Elf64_Shdr *info = section(&view, ".nv.info.", kernel.name);
        if (!info) /* a device function that is no kernel has no parameters to describe */
            continue;
        const Elf64_Shdr *shared = section(&view, ".nv.shared.", kernel.name);
        if (shared && shared->sh_size >= reserved)
            kernel.shared_bytes = (uint32_t)shared->sh_size - reserved;
        const uint32_t *threads = info_value(&view, info, INFO_MAX_THREADS, UINT32_MAX);
        if (!threads)
            threads = info_value(&view, info, INFO_REQUIRED_THREADS, UINT32_MAX);
        if (threads)
            kernel.threads_max = (int)(threads[0] * threads[1] * threads[2]);
        uint32_t symbol = symbol_index(&view, kernel.name);
        const uint32_t *frame = info_all ? info_value(&view, info_all, INFO_FRAME_SIZE, symbol) : NULL;
        kernel.local_bytes = frame ? frame[1] : 0;
        const uint32_t *registers = info_all ? info_value(&view, info_all, INFO_REGISTERS, symbol) : NULL;
        if (registers)
            kernel.registers = (int)registers[1];
        found(&kernel, user);
    }
    return true;
}

bool hl_bridge_cubin_global(const void *image, const char *name, size_t *size_bytes)
{
    struct view view;
    const char *strings;
    size_t count;

    if (!open_view(image, &view))
        return false;
    const Elf64_Sym *symbols = symbols_of(&view, &count, &strings);
    for (size_t i = 0; i < count; i++)
        if (ELF64_ST_TYPE(symbols[i].st_info) == STT_OBJECT && !strcmp(strings + symbols[i].st_name, name)) {
            *size_bytes = symbols[i].st_size;
            return true;
        }
    return false;
}
