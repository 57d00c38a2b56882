//! Tool calls in the formats that models write.

mod formats;
mod literal;
mod markup;
mod values;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// A call of a tool, as a model has written it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The id that the model gave to the call, where its format has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The name of the tool.
    pub name: String,
    /// By name; a model may write something else than an object.
    pub arguments: Value,
}

macro_rules! formats {
    ($($(#[$doc:meta])* $variant:ident $name:literal $start:literal $end:literal $parse:path;)*) => {
        /// How a model writes tool calls. The names are those of `tool_parser_type` in mlx-lm.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ToolFormat {
            $($(#[$doc])* $variant,)*
        }

        impl ToolFormat {
            /// Every format.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What a model writes before calls.
            pub fn start(self) -> &'static str {
                match self { $(Self::$variant => $start,)* }
            }

            /// What a model writes after calls; empty where they last to the end.
            pub fn end(self) -> &'static str {
                match self { $(Self::$variant => $end,)* }
            }

            /// The calls in the text between [`start`](Self::start) and [`end`](Self::end). The schemas
            /// of `tools` say which arguments are text and which are numbers, where the format does not.
            pub fn parse(self, text: &str, tools: &[Value]) -> Result<Vec<ToolCall>> {
                let calls = match self { $(Self::$variant => $parse(text, tools),)* };
                calls.map_err(|message| Error::argument("tool call", message))
            }
        }
    };
}

formats! {
    /// `call:name{key:<escape>text<escape>,key:1}`
    FunctionGemma "function_gemma" "<start_function_call>" "<end_function_call>" formats::function_gemma;
    /// `call:name{key:<|"|>text<|"|>,key:{inner:1}}`
    Gemma4 "gemma4" "<|tool_call>" "<tool_call|>" formats::gemma4;
    /// `name<arg_key>key</arg_key><arg_value>value</arg_value>`, or JSON, or plain text
    Glm47 "glm47" "<tool_call>" "</tool_call>" markup::glm47;
    /// `{"name": ..., "arguments": ...}`
    JsonTools "json_tools" "<tool_call>" "</tool_call>" formats::json_tools;
    /// `functions.name:0<|tool_call_argument_begin|>{...}`
    KimiK2 "kimi_k2" "<|tool_calls_section_begin|>" "<|tool_calls_section_end|>" formats::kimi_k2;
    /// `<|open|>call tool="name"<|sep|><|open|>argument key="key" type="string"<|sep|>...`
    KimiK3 "kimi_k3" "<|open|>tools<|sep|>" "<|close|>tools<|sep|>" markup::kimi_k3;
    /// As [`Glm47`](Self::Glm47)
    Laguna "laguna" "<tool_call>" "</tool_call>" markup::glm47;
    /// `name<longcat_arg_key>key</longcat_arg_key><longcat_arg_value>value</longcat_arg_value>`, or JSON
    Longcat "longcat" "<longcat_tool_call>" "</longcat_tool_call>" markup::longcat;
    /// `"name"><param name="key">value</param>`
    MiniCpm5 "minicpm5" "<function name=" "</function>" markup::minicpm5;
    /// `<invoke name="name"><parameter name="key">value</parameter></invoke>`
    MiniMaxM2 "minimax_m2" "<minimax:tool_call>" "</minimax:tool_call>" markup::minimax_m2;
    /// `name[ARGS]{...}`, or a JSON list
    Mistral "mistral" "[TOOL_CALLS]" "" formats::mistral;
    /// `<atem:invoke name="name"><atem:parameter name="key">value</atem:parameter></atem:invoke>`
    MuseSpark "muse_spark" "<atem:function_calls>" "</atem:function_calls>" markup::muse_spark;
    /// `[name(key="value", other=2)]`
    Pythonic "pythonic" "<|tool_call_start|>" "<|tool_call_end|>" formats::pythonic;
    /// `<function=name><parameter=key>value</parameter></function>`
    Qwen3Coder "qwen3_coder" "<tool_call>" "</tool_call>" markup::qwen3_coder;
}

impl ToolFormat {
    /// The format of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| format.name() == name)
    }

    /// The format that a chat template asks the model for, or else that its vocabulary has tokens for.
    pub(super) fn infer(template: impl Fn(&str) -> bool, vocabulary: impl Fn(&str) -> bool) -> Option<Self> {
        let all = |texts: &[&str]| texts.iter().all(|text| template(text));
        let any = |texts: &[&str]| texts.iter().any(|text| template(text));
        Some(if all(&["<minimax:tool_call>"]) {
            Self::MiniMaxM2
        } else if all(&["<|tool_call>", "<tool_call|>"]) {
            Self::Gemma4
        } else if all(&["<start_function_call>"]) {
            Self::FunctionGemma
        } else if all(&["<longcat_tool_call>"]) {
            Self::Longcat
        } else if all(&["<arg_key>"]) {
            Self::Glm47
        } else if any(&["<|tool_list_start|>", "<|tool_call_start|>"]) {
            Self::Pythonic
        } else if any(&["<tool_call>\\n<function=", "<tool_call>\n<function="]) {
            Self::Qwen3Coder
        } else if all(&["<|tool_calls_section_begin|>"]) {
            Self::KimiK2
        } else if all(&["<function name=\"", "<param name=\""]) {
            Self::MiniCpm5
        } else if all(&["[TOOL_CALLS]"]) {
            Self::Mistral
        } else if all(&["<atem:function_calls>"]) {
            Self::MuseSpark
        } else if all(&["<tool_call>", "tool_call.name"]) {
            Self::JsonTools
        } else if super::response::is_xtml(&vocabulary) {
            Self::KimiK3
        } else if vocabulary("<|tool_call_start|>") && vocabulary("<|tool_call_end|>") {
            Self::Pythonic
        } else {
            return None;
        })
    }
}

type Calls = std::result::Result<Vec<ToolCall>, String>;

const NONE: &str = "no call in the text";

fn call(name: impl Into<String>, arguments: impl Into<Value>) -> ToolCall {
    ToolCall { id: None, name: name.into(), arguments: arguments.into() }
}
