//! Chat templates, against what Jinja2 makes of them.

use exotherm_tokenizer::{ChatTemplate, Message};
use serde_json::json;

fn render(source: &str) -> String {
    let messages = [
        Message::new("system", "Be <brief>."),
        Message::new("user", " hi\nthere "),
        Message::new("assistant", "ok"),
    ];
    let extra = json!({ "bos_token": "<s>", "eos_token": "</s>", "tools": [{ "name": "f", "args": { "x": 1.5, "é": null } }] });
    let template = ChatTemplate::new(source).expect("compiles");
    assert_eq!(template.source(), source);
    template.render(&messages, true, &extra).expect("renders")
}

#[test]
fn the_usual_forms_of_templates() {
    let chatml = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    assert_eq!(
        render(chatml),
        "<|im_start|>system\nBe <brief>.<|im_end|>\n<|im_start|>user\n hi\nthere <|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        render(
            "{{ bos_token }}\n{%- for m in messages if m.role != 'system' %}\n  [{{ m.content | trim }}]\n{%- endfor %}\n{{ eos_token }}\n"
        ),
        "<s>  [hi\nthere]  [ok]</s>"
    );
}

#[test]
fn blocks_and_lines_are_trimmed_as_transformers_does() {
    assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
    assert_eq!(render("{% set x = 1 %}\n{% set y %}q{% endset %}\n{{ x }}{{ y }}"), "1q");
    assert_eq!(render("  {%- macro f(a, b='z') -%}\n  {{ a }}{{ b }}\n{%- endmacro -%}  {{ f('q') }}"), "qz");
    assert_eq!(render("{% for k, v in {'a': 1}.items() %}\n{{ k }}{{ v }}\n{% endfor %}"), "a1\n");
}

#[test]
fn python_methods_and_filters() {
    assert_eq!(render("{{ messages[1].content.strip().upper() }}"), "HI\nTHERE");
    assert_eq!(
        render("{{ 'a,b'.split(',')[-1] }}{{ 'abc'.startswith('ab') }}{{ 'x'.join(['1', '2']) }}"),
        "bTrue1x2"
    );
    assert_eq!(
        render("{{ 'aXbXc'.replace('X', '-', 1) }}|{{ 'a\nb\n\nc' | indent(2) }}"),
        "a-bXc|a\n  b\n\n  c"
    );
    assert_eq!(render("{{ messages[::-1] | map(attribute='role') | join(',') }}"), "assistant,user,system");
    assert_eq!(render("{{ tools | tojson }}"), r#"[{"name": "f", "args": {"x": 1.5, "é": null}}]"#);
    assert_eq!(render("{{ {'a': [1, {}]} | tojson(indent=2) }}"), "{\n  \"a\": [\n    1,\n    {}\n  ]\n}");
    assert_eq!(render("{{ missing is defined }}{{ missing }}{{ none }}"), "FalseNone");
    assert_eq!(
        render(
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}"
        ),
        "user"
    );
}

#[test]
fn marks_for_training_leave_no_trace() {
    let source = "{% for m in messages %}{%- if m.role == 'assistant' -%}\n  {%- generation -%} {{ m.content }} {%- endgeneration -%}\n{%- endif -%}{% endfor %}";
    assert_eq!(render(source), "ok");
    assert_eq!(
        render("{% raw %}{% set x = 1 %}{{ y }}{% endraw %}{# {% set #}{{ '{% set a = b %}' }}"),
        "{% set x = 1 %}{{ y }}{% set a = b %}"
    );
}

#[test]
fn dates_are_todays() {
    let year = render("{{ strftime_now('%Y') }}");
    assert!(year.len() == 4 && year.chars().all(|c| c.is_ascii_digit()), "{year}");
}

#[test]
fn extra_variables_must_be_an_object_and_win() {
    let template = ChatTemplate::new("{{ messages | length }}{{ enable_thinking }}").expect("compiles");
    let one = [Message::new("user", "x")];
    assert_eq!(
        template.render(&one, false, &json!({ "enable_thinking": false })).expect("renders"),
        "1False"
    );
    assert_eq!(template.render(&one, false, &json!({ "messages": [] })).expect("renders"), "0");
    assert!(template.render(&one, false, &json!([1])).is_err());
}
