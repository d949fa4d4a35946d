// SPDX-License-Identifier: MIT
// Chat templates: the model's own through Jinja, those of llama.cpp, files, none, and broken ones.
#include "cli/llama/chat_template.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cli/llama/model.h"
#include "cli/verbs.h"
#include "tests/ggml/tiny_model.h"
#include "tests/support/temporary_folder.h"

namespace tsp::cli {
namespace {

namespace fs = std::filesystem;

class ChatTemplate : public testing::Test {
 protected:
  Model model_of(const std::string& chat_template, bool add_bos = false) const {
    const std::string path = (folder_ / "model.gguf").string();
    test::TinyModel tiny;
    tiny.chat_template = chat_template;
    tiny.add_bos = add_bos;
    test::write_tiny_model(tiny, path);
    return Model(path, false);
  }
  /// The prompt as one text, what is the user's in braces.
  std::string prompt_of(const Model& model, const std::string& choice = "model") const {
    std::string text;
    for (const PromptPart& part : chat_prompt(*model.get(), choice, message_).parts) {
      text += part.of_user ? "{" + part.text + "}" : part.text;
    }
    return text;
  }
  std::string why_not(const Model& model, const std::string& choice = "model") const {
    try {
      return "got " + prompt_of(model, choice);
    } catch (const Failure& failure) {
      return failure.what();
    }
  }

  const test::TemporaryFolder temporary_;
  const fs::path& folder_ = temporary_.path();
  std::string message_ = " text <|im_end|>\n\nquestion?";
};

TEST_F(ChatTemplate, TheModelsOwnIsRunWhateverItLooksLike) {
  // No marker stands in it literally: llama.cpp's C++ does not know it.
  const Model model = model_of(
      "{%- set o = '<|im_' ~ 'start|>' %}{%- set c = '<|im_' ~ 'end|>' %}"
      "{%- for m in messages %}{{- o ~ m.role ~ '\\n' ~ m.content ~ c ~ '\\n' }}{%- endfor %}"
      "{%- if add_generation_prompt %}{{- o ~ 'assistant\\n' }}{%- endif %}");
  EXPECT_EQ(prompt_of(model),
            "<|im_start|>user\n{" + message_ + "}<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(chat_prompt(*model.get(), "model", "x").used, "the model's");
  EXPECT_EQ(prompt_of(model), prompt_of(model, "chatml"));
}

TEST_F(ChatTemplate, WhatItDoesToTheMessageIsDoneToTheMessage) {
  EXPECT_EQ(prompt_of(model_of("<{{ messages[0]['content'] | trim | upper }}>")),
            "<{TEXT <|IM_END|>\n\nQUESTION?}>");
}

TEST_F(ChatTemplate, SystemTurnsOfItsOwnAreKept) {
  EXPECT_EQ(prompt_of(model_of("{% if messages[0].role != 'system' %}sys;{% endif %}"
                               "{{ messages[0].content }}")),
            "sys;{" + message_ + "}");
}

TEST_F(ChatTemplate, MessagesMayBeListsOfParts) {
  EXPECT_EQ(prompt_of(model_of("{% for p in messages[0].content %}{% if p.type == 'text' %}"
                               "[{{ p.text }}]{% endif %}{% endfor %}")),
            "[{" + message_ + "}]");
}

TEST_F(ChatTemplate, TheStartMarkerStandsOnce) {
  const std::string with_start = "{{ bos_token }}u:{{ messages[0].content }}{{ eos_token }}";
  EXPECT_EQ(prompt_of(model_of(with_start, true)), "u:{" + message_ + "}<|im_end|>");
  EXPECT_EQ(prompt_of(model_of(with_start)), "<|endoftext|>u:{" + message_ + "}<|im_end|>");
}

TEST_F(ChatTemplate, NoneAndNoTemplateAreTheMessageAlone) {
  const Model bare = model_of("");
  EXPECT_EQ(prompt_of(bare), "{" + message_ + "}");
  EXPECT_EQ(chat_prompt(*bare.get(), "model", "x").used, "none (the model has none)");
  EXPECT_EQ(prompt_of(model_of("a {{ messages[0].content }}"), "none"), "{" + message_ + "}");
}

TEST_F(ChatTemplate, OthersByNameOrFile) {
  const Model model = model_of("own {{ messages[0].content }}");
  EXPECT_EQ(prompt_of(model, "llama3"),
            "<|start_header_id|>user<|end_header_id|>\n\n{" + message_ +
                "}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
  const std::string file = (folder_ / "mine.jinja").string();
  std::ofstream(file) << "Q: {{ messages[0].content }}\r\nA:";
  EXPECT_EQ(prompt_of(model, file), "Q: {" + message_ + "}\nA:");
  EXPECT_EQ(chat_prompt(*model.get(), file, "x").used, file);
  const std::string why = why_not(model, "nosuch");
  EXPECT_EQ(why.find("--chat-template: must be model, none, a file with a template, or one of"),
            0u);
  EXPECT_NE(why.find("chatml"), std::string::npos);
  EXPECT_NE(why.find("; got nosuch"), std::string::npos);
}

TEST_F(ChatTemplate, ABrokenOneIsNamed) {
  const auto complaint = [&](const std::string& chat_template) {
    return why_not(model_of(chat_template));
  };
  const std::string start = "--chat-template: the model's chat template cannot be applied: ";
  for (const char* broken : {"{% for m in messages %}", "{{ messages[0].content | nosuch }}",
                             "{{ raise_exception('no users here') }}", "{{ 1 / 'a' }}", "{%"}) {
    EXPECT_EQ(complaint(broken).find(start), 0u) << complaint(broken);
    EXPECT_EQ(complaint(broken).find('\n'), std::string::npos) << complaint(broken);
  }
  EXPECT_EQ(complaint("always the same"),
            start + "it leaves the message out; another one, or none, can be named");
}

TEST_F(ChatTemplate, MarkersInTheTextAreNoMarkers) {
  const Model model = model_of("<|im_start|>{{ messages[0].content }}<|im_end|>");
  const auto tokens = model.prompt_tokens("<|im_end|>", "?");
  // Two markers, and a token for each byte between them.
  EXPECT_EQ(tokens.size(), 2 + std::string("<|im_end|>\n\n?").size());
}

class LongTexts : public ChatTemplate {};

TEST_F(LongTexts, FirstTokensAreThoseOfTheWhole) {
  const Model model = model_of("");
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "n\u00e9 " + std::to_string(i);
  const auto whole = model.tokens_of(text, false);
  for (const int32_t count : {1, 2, 100, 1000, 1 << 20}) {
    const auto first = model.first_tokens(text, count);
    ASSERT_EQ(first.size(), std::min(whole.size(), static_cast<size_t>(count)));
    EXPECT_TRUE(std::equal(first.begin(), first.end(), whole.begin()));
  }
}

TEST_F(LongTexts, AreRefusedByNameAndLimit) {
  const Model model = model_of("");
  EXPECT_NO_THROW(model.check_length(std::string(100, 'x'), "t.txt", 100));
  const auto why = [&](size_t bytes) {
    try {
      model.check_length(std::string(bytes, 'x'), "t.txt", 100);
    } catch (const Failure& failure) {
      return std::string(failure.what());
    }
    return std::string("fits");
  };
  EXPECT_EQ(why(101),
            "t.txt is too long: its 101 bytes are more than 100 tokens, and the context holds 100 "
            "(--ctx)");
  // The longest token, <|endoftext|>, has 13 bytes.
  EXPECT_EQ(why(1313 + 13),
            "t.txt is too long: its 1326 bytes are 102 tokens or more, and the context holds 100 "
            "(--ctx)");
}

}  // namespace
}  // namespace tsp::cli
