// SPDX-License-Identifier: MIT
/// \file tokensparse.h
/// The whole C ABI. C++ has tokensparse.hpp on top of it.
#ifndef TOKENSPARSE_TOKENSPARSE_H_
#define TOKENSPARSE_TOKENSPARSE_H_

#include "tokensparse/attend.h"
#include "tokensparse/compress.h"
#include "tokensparse/context.h"
#include "tokensparse/decompress.h"
#include "tokensparse/estimate.h"
#include "tokensparse/prefill.h"
#include "tokensparse/score.h"
#include "tokensparse/select.h"
#include "tokensparse/types.h"

#endif  // TOKENSPARSE_TOKENSPARSE_H_
