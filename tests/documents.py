"""A document with objects of many classes, for tests."""

from typing import Any

DOCUMENT: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1741476777,
    "completed_at": 1741476778.5,
    "status": "completed",
    "background": True,
    "error": None,
    "model": "gpt-4o",
    "metadata": {"a": "b"},
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}], "content": []},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [
                {
                    "type": "output_text",
                    "text": "Forty",
                    "annotations": [{"type": "url_citation", "url": "https://e.x", "start_index": 0, "end_index": 5}],
                    "logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}],
                },
                {"type": "refusal", "refusal": "No."},
                {"type": "output_text", "text": "-two"},
            ],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "async": True, "new_field": [1]},
        {"type": "some_future_type", "deep": {"er": [1, 2, {}]}},
    ],
    "usage": {
        "input_tokens": 328,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 52,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 380,
    },
    "temperature": 1,
    "kv_transfer_params": {"vllm": "only"},
}
