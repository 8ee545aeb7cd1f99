"""Cancel the responses whose ids are the arguments."""

import sys

from openai_cancel import OpenAICancelError, Session

with Session() as session:
    for response_id in sys.argv[1:]:
        try:
            response = session.cancel(response_id)
        except OpenAICancelError as error:
            print(response_id, error)
        else:
            print(response_id, response.status, f"{response.usage.total_tokens} tokens" if response.usage else "")
