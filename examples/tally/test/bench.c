/* Measures tally.c: linked with the object file that the build step left. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../src/tally.h"

int main(void)
{
    enum { MEGABYTES = 16 };
    size_t length = (size_t)MEGABYTES << 20;
    char *text = malloc(length);
    struct tally *tally = tally_new();
    if (!text || !tally)
        return 1;
    unsigned seed = 1;
    for (size_t i = 0; i < length; i++) {
        seed = seed * 1103515245u + 12345u;
        text[i] = (seed >> 16) % 4 == 0 ? ' ' : (char)('a' + (seed >> 20) % 4);
    }
    clock_t start = clock();
    if (tally_add(tally, text, length) != 0 || tally_end(tally) != 0)
        return 1;
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    printf("%zu words, %zu distinct, in %d MB\n", tally_words(tally), tally_distinct(tally), MEGABYTES);
    printf("%.0f MB/s\n", MEGABYTES / (seconds > 0 ? seconds : 1e-6));
    tally_free(tally);
    free(text);
    return 0;
}
