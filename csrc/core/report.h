/* How the C side speaks: one line to stderr for what ends the process, counted events for what the run's report must
 * show. No stdio and no heap: a report may be made from a signal handler or before libc is ready. */
#ifndef HL_CORE_REPORT_H
#define HL_CORE_REPORT_H

/* Prints "hyperlapse: <text>" and aborts. The text says what to do next. Understands %s %d %u %x (64-bit) %p. */
__attribute__((noreturn, format(printf, 1, 2))) void hl_report_fatal(const char *format, ...);

/* Prints "hyperlapse: warning: <text>": the result should not be trusted before this is read. */
__attribute__((format(printf, 1, 2))) void hl_report_warning(const char *format, ...);

/* Counts (kind, text) for the run's report, over all its processes. kind: "unsupported-call", "unknown-kernel",
 * "unvirtualised-wait", ... Texts are cut at 199 bytes. Without a run it does nothing. */
void hl_report_event(const char *kind, const char *text);

/* The same for the time-keeper, which is no participant of the run whose page it has mapped. */
struct hl_page;
void hl_report_event_on(struct hl_page *page, const char *kind, const char *text);

#endif
