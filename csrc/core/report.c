/* See report.h. The formatter is our own because vsnprintf may take locks and read the locale; it knows only what our
 * messages use. */
#include "report.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "export.h"
#include "page.h"
#include "sys.h"

#define LINE_BYTES 1024

typedef struct line {
    char text[LINE_BYTES];
    size_t length;
} line;

static void put_char(line *out, char c)
{
    if (out->length < sizeof out->text - 2)
        out->text[out->length++] = c;
}

static void put_text(line *out, const char *text)
{
    for (text = text ? text : "(null)"; *text; text++)
        put_char(out, *text);
}

static void put_unsigned(line *out, uint64_t value, unsigned base)
{
    char digits[24];
    int count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (count)
        put_char(out, digits[--count]);
}

static void put_signed(line *out, int64_t value)
{
    if (value < 0)
        put_char(out, '-');
    put_unsigned(out, value < 0 ? -(uint64_t)value : (uint64_t)value, 10);
}

static void put_format(line *out, const char *format, va_list arguments)
{
    for (; *format; format++) {
        if (*format != '%') {
            put_char(out, *format);
            continue;
        }
        int longs = 0;
        for (format++; *format == 'l' || *format == 'z'; format++)
            longs++;
        switch (*format) {
        case 's': put_text(out, va_arg(arguments, const char *)); break;
        case 'd': put_signed(out, longs ? va_arg(arguments, long) : va_arg(arguments, int)); break;
        case 'u': put_unsigned(out, longs ? va_arg(arguments, unsigned long) : va_arg(arguments, unsigned), 10); break;
        case 'x': put_unsigned(out, longs ? va_arg(arguments, unsigned long) : va_arg(arguments, unsigned), 16); break;
        case 'p':
            put_text(out, "0x");
            put_unsigned(out, (uintptr_t)va_arg(arguments, void *), 16);
            break;
        case 'c': put_char(out, (char)va_arg(arguments, int)); break;
        case '%': put_char(out, '%'); break;
        default: put_text(out, "%?"); return;
        }
    }
}

static void flush(line *out)
{
    out->text[out->length++] = '\n';
    hl_sys_write(2, out->text, out->length);
}

HL_EXPORT void hl_report_fatal(const char *format, ...)
{
    line out = {.length = 0};
    va_list arguments;
    put_text(&out, "hyperlapse: ");
    va_start(arguments, format);
    put_format(&out, format, arguments);
    va_end(arguments);
    flush(&out);
    abort();
}

HL_EXPORT void hl_report_warning(const char *format, ...)
{
    line out = {.length = 0};
    va_list arguments;
    put_text(&out, "hyperlapse: warning: ");
    va_start(arguments, format);
    put_format(&out, format, arguments);
    va_end(arguments);
    flush(&out);
}

static void copy_cut(char *to, const char *from, size_t size)
{
    size_t i = 0;
    for (; from[i] && i < size - 1; i++)
        to[i] = from[i];
    to[i] = 0;
}

HL_EXPORT void hl_report_event(const char *kind, const char *text)
{
    hl_page *page = hl_page_get();
    if (page)
        hl_report_event_on(page, kind, text);
}

HL_EXPORT void hl_report_event_on(hl_page *page, const char *kind, const char *text)
{
    char short_kind[HL_EVENT_KIND_BYTES], short_text[HL_EVENT_TEXT_BYTES];
    copy_cut(short_kind, kind, sizeof short_kind);
    copy_cut(short_text, text, sizeof short_text);
    for (int i = 0; i < HL_EVENTS_MAX; i++) {
        hl_event_count *event = &page->events[i];
        uint32_t free_entry = 0;
        if (atomic_compare_exchange_strong(&event->used, &free_entry, 1)) {
            memcpy(event->kind, short_kind, sizeof short_kind);
            memcpy(event->text, short_text, sizeof short_text);
            atomic_store(&event->count, 1);
            atomic_store(&event->used, 2);
            return;
        }
        for (int looks = 0; atomic_load(&event->used) == 1 && looks < 1000; looks++)
            hl_sys_yield();
        if (atomic_load(&event->used) == 1)
            continue; /* its writer was killed in the middle */
        if (!strcmp(event->kind, short_kind) && !strcmp(event->text, short_text)) {
            atomic_fetch_add(&event->count, 1);
            return;
        }
    }
    /* The last entry collects what found no room: counted, never lost in silence. */
    atomic_fetch_add(&page->events[HL_EVENTS_MAX - 1].count, 1);
}
