#pragma once

// Marks what libpagedcore exports; everything else in the library is hidden.
#define PAGEDCORE_API __attribute__((visibility("default")))
