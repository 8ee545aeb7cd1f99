"""Calls to shells and changes to files, and their outputs.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import Literal

from openai_cancel.models.agents import Agent, Caller
from openai_cancel.models.shared import Model, Unknown
from openai_cancel.models.tools import ContainerReference, LocalEnvironment

__all__ = [
    "ApplyPatchCall",
    "ApplyPatchCallOutput",
    "CreateFile",
    "DeleteFile",
    "LocalShellAction",
    "LocalShellCall",
    "LocalShellCallOutput",
    "ShellAction",
    "ShellCall",
    "ShellCallOutput",
    "ShellExit",
    "ShellOutput",
    "ShellTimeout",
    "UpdateFile",
]


class LocalShellAction(Model):
    """A command for the local shell; `timeout_ms` is in milliseconds."""

    type: Literal["exec"] = "exec"
    command: list[str] | None = None
    env: dict[str, str] | None = None
    timeout_ms: int | None = None
    user: str | None = None
    working_directory: str | None = None


class LocalShellCall(Model):
    """A command for a shell on the client's machine."""

    type: Literal["local_shell_call"] = "local_shell_call"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    action: LocalShellAction | Unknown | None = None
    agent: Agent | None = None


class LocalShellCallOutput(Model):
    """The output of a local shell call, as JSON text."""

    type: Literal["local_shell_call_output"] = "local_shell_call_output"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    output: str | None = None
    agent: Agent | None = None


class ShellAction(Model):
    """Commands for a shell; `timeout_ms` is in milliseconds, `max_output_length` in characters."""

    commands: list[str] | None = None
    max_output_length: int | None = None
    timeout_ms: int | None = None


class ShellCall(Model):
    """A call to the shell tool."""

    type: Literal["shell_call"] = "shell_call"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    action: ShellAction | None = None
    environment: LocalEnvironment | ContainerReference | Unknown | None = None
    caller: Caller | None = None
    created_by: str | None = None
    agent: Agent | None = None


class ShellTimeout(Model):
    """The outcome of a command that exceeded its time limit."""

    type: Literal["timeout"] = "timeout"


class ShellExit(Model):
    """The outcome of a command that finished."""

    type: Literal["exit"] = "exit"
    exit_code: int | None = None


class ShellOutput(Model):
    """The output and the outcome of one command."""

    outcome: ShellTimeout | ShellExit | Unknown | None = None
    stderr: str | None = None
    stdout: str | None = None
    created_by: str | None = None


class ShellCallOutput(Model):
    """The output of a shell call."""

    type: Literal["shell_call_output"] = "shell_call_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    max_output_length: int | None = None
    output: list[ShellOutput | Unknown] | None = None
    caller: Caller | None = None
    created_by: str | None = None
    agent: Agent | None = None


class CreateFile(Model):
    """An instruction to create a file."""

    type: Literal["create_file"] = "create_file"
    diff: str | None = None
    path: str | None = None


class DeleteFile(Model):
    """An instruction to delete a file."""

    type: Literal["delete_file"] = "delete_file"
    path: str | None = None


class UpdateFile(Model):
    """An instruction to update a file."""

    type: Literal["update_file"] = "update_file"
    diff: str | None = None
    path: str | None = None


class ApplyPatchCall(Model):
    """A call to the apply-patch tool, which changes one file."""

    type: Literal["apply_patch_call"] = "apply_patch_call"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed"] | str | None = None
    operation: CreateFile | DeleteFile | UpdateFile | Unknown | None = None
    caller: Caller | None = None
    created_by: str | None = None
    agent: Agent | None = None


class ApplyPatchCallOutput(Model):
    """The output of an apply-patch call."""

    type: Literal["apply_patch_call_output"] = "apply_patch_call_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["completed", "failed"] | str | None = None
    caller: Caller | None = None
    created_by: str | None = None
    output: str | None = None
    agent: Agent | None = None
