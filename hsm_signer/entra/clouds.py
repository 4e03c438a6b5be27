"""Microsoft's clouds, and the hosts of Entra and Microsoft Graph in each."""

import re
from enum import StrEnum


class Cloud(StrEnum):
    """A Microsoft cloud. Each tenant is in exactly one."""

    PUBLIC = "public"
    USGOV = "usgov"
    CHINA = "china"


AUTHORITIES = {
    Cloud.PUBLIC: "https://login.microsoftonline.com",
    Cloud.USGOV: "https://login.microsoftonline.us",
    Cloud.CHINA: "https://login.partner.microsoftonline.cn",
}
GRAPHS = {
    Cloud.PUBLIC: "https://graph.microsoft.com",
    Cloud.USGOV: "https://graph.microsoft.us",
    Cloud.CHINA: "https://microsoftgraph.chinacloudapi.cn",
}
GRAPH_OF_DOD = "https://dod-graph.microsoft.us"
# Present and former hosts where Entra accepts assertions, or that appear in its issuers. We search the whole audience
# for them, so that no odd spelling of a URL hides one.
ENTRA_HOST = re.compile(
    r"(?<![a-z0-9_-])(?:"
    r"(?:[a-z0-9-]+\.)*microsoftonline(?:-p)?\.(?:com|us|cn|de|net)"
    r"|(?:[a-z0-9-]+\.)*ciamlogin\.com"
    r"|(?:[a-z0-9-]+\.)*login\.microsoft\.com"
    r"|(?:[a-z0-9-]+\.)*(?:login|sts)\.(?:windows\.net|chinacloudapi\.cn)"
    r"|(?:[a-z0-9-]+\.)*(?:(?:[a-z0-9]+-)*graph\.(?:windows\.net|microsoft\.(?:com|us))|microsoftgraph\.chinacloudapi\.cn)"
    r")(?![a-z0-9_-])"
)
