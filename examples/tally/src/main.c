#include <stdio.h>
#include <stdlib.h>

#include "tally.h"

static int fail(const char *what)
{
    perror(what);
    return 1;
}

int main(int argc, char **argv)
{
    unsigned long most = argc > 1 ? strtoul(argv[1], NULL, 10) : 10;
    if (argc > 2 || most == 0) {
        fprintf(stderr, "usage: tally [HOW_MANY] < TEXT\n");
        return 2;
    }
    struct tally *tally = tally_new();
    if (!tally)
        return fail("tally");
    static char piece[1 << 16];
    size_t length;
    while ((length = fread(piece, 1, sizeof piece, stdin)) > 0)
        if (tally_add(tally, piece, length) != 0)
            return fail("tally");
    if (ferror(stdin) || tally_end(tally) != 0)
        return fail("tally");
    struct entry *entries = tally_sorted(tally);
    if (!entries)
        return fail("tally");
    for (size_t i = 0; i < tally_distinct(tally) && i < most; i++)
        printf("%7zu %s\n", entries[i].count, entries[i].word);
    free(entries);
    tally_free(tally);
    return fflush(stdout) == 0 ? 0 : fail("tally");
}
