"""What an object store's error means: whether waiting helps, and what to tell the user."""

import re

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from contract.store.interface import StoreError, StoreRefuses

_STATUS = re.compile(r"status code: (\d{3})")

_LASTING = re.compile(r"3\d\d|501|4(?!08|09|29)\d\d")
"""HTTP statuses that stay however long one waits. Of 4xx these pass: 408 Request Timeout, 409 Conflict with another
write, 429 Too Many Requests."""

_NO_CREDENTIALS = re.compile(r"Missing [A-Z]\w+|[Cc]redential")
"""Of an error that comes from no server."""

_REDIRECTED = re.compile(r"status code: 3\d\d|redirect|AuthorizationHeaderMalformed|IllegalLocationConstraint")
"""The bucket is in another region."""

_METADATA_SERVER = re.compile(r"https?://(169\.254\.|metadata\.google\.internal|\[fd00:ec2::254\])")
"""Asked for credentials where no variable has them: outside of a cloud it does not answer."""

_XML = re.compile(r"<\?xml.*?<Code>(?P<code>.*?)</Code>(?:.*?<Message>(?P<message>.*?)</Message>)?.*", re.DOTALL)
"""An S3 server's own words."""


_CAUSE = re.compile(r'kind: (Timeout),|message: "([^"]+)"|error: "([^"]+)"')
"""Why nothing came from a server, in what the error's one line leaves out: ``Timeout``, ``Connection refused``."""


def bare(error: BaseException) -> str:
    """What an error says in one line, without URLs, names of objects, times and Rust's own details: ``… status code:
    403 Forbidden: AccessDenied: Access Denied``."""
    text, _, details = str(error).partition("Debug source")
    if text.rstrip().endswith("error sending request") and (cause := _CAUSE.search(details)):
        text = f"{text.rstrip()}: {next(filter(None, cause.groups()))}"
    text = _XML.sub(lambda found: ": ".join(filter(None, found.groups())), text)
    text = re.sub(r"https?://\S+|(?<=for path )\S+|(?<=at location )\S+", "…", text)
    text = re.sub(r" in [\d.]+(ns|µs|ms|s)\b", "", text)
    return " ".join(text.split())[:300] or type(error).__name__


def refuses(error: BaseException) -> bool:
    """Whether waiting does not help."""
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _METADATA_SERVER.search(str(error)):
        return True
    answer = bare(error)
    if status := _STATUS.search(answer):
        # RequestTimeout has status 400: an upload that was too slow.
        return bool(_LASTING.fullmatch(status[1])) and "RequestTimeout" not in answer
    return bool(_NO_CREDENTIALS.search(answer) or _REDIRECTED.search(answer))


def error_of(error: BaseError, uri: str) -> StoreError:
    """What to tell the user.

    Args:
        error: obstore's.
        uri: the object's or the prefix's.
    """
    answer = bare(error)
    if "NoSuchBucket" in str(error):
        return StoreRefuses(f"there is no bucket for {uri} ({answer})", hint="make the bucket, or choose another")
    if _REDIRECTED.search(answer):
        named = re.search(r"<Region>([\w-]+)</Region>", str(error))
        hint = f"set AWS_REGION to {named[1]}" if named else "set AWS_REGION to the bucket's region"
        return StoreRefuses(f"{uri} is in another region ({answer})", hint=hint)
    if refuses(error):
        return StoreRefuses(f"the object store refuses {uri} ({answer})", hint=_hint(answer, uri))
    hint = "see that it can be reached (AWS_ENDPOINT_URL), and run the same command again: nothing is lost"
    return StoreError(f"the object store does not answer for {uri} ({answer})", hint=hint)


def _hint(answer: str, uri: str) -> str:
    status = _STATUS.search(answer)
    if status and status[1] == "501":
        return "use a store that knows PUT with the condition If-None-Match: *"
    if not uri.startswith("s3:"):
        variables = "variable GOOGLE_APPLICATION_CREDENTIALS"
    else:
        variables = "AWS_* variables, or install boto3 for profiles in ~/.aws,"
    hint = f"set the {variables} to credentials that may list, read and write there"
    # A wrong region has status 400, and the answer to a HEAD has no words.
    return f"set AWS_REGION to the bucket's region, and {hint}" if status and status[1] == "400" else hint
